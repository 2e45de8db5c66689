"""The pretraining sets of the paper: name → conversion."""

from __future__ import annotations

from dataclasses import replace

from vitp.data.corpora import medical, remote_sensing
from vitp.data.corpora.base import Corpus
from vitp.data.corpora.conversations import conversations
from vitp.data.corpora.remote_sensing import scene_folders
from vitp.data.published import published_set

_SCENE = "What kind of scene does the image show?"
_COVER = "Which land cover does this radar image show?"
_HUATUO = "FreedomIntelligence (J. Chen and others), on the Hugging Face hub as PubMedVision"
_MARKS = "rows with several images have no marks; one mark an image is put in front"

# fmt: off
_REMOTE_SENSING = (
    Corpus("rsvqa", "RSVQA", "S. Lobry and others, on the RSVQA page and on Zenodo (LR, HR)",
           "LR_split_train_{questions,answers}.json and Images_LR/*.tif; USGS_split_train_… and Data/*.tif",
           remote_sensing.rsvqa,
           "low and high resolution, whichever is there; rows that are not active are left out"),
    Corpus("fit_rs", "FIT-RS", "the authors of SkySenseGPT (J. Luo and others), on the Hugging Face hub as FIT-RS",
           "fit_rs_vqa_100k.jsonl (of InternVL's domain adaptation data) or FIT-RS-train-1415k.json, and FIT-RS_Img/",
           conversations("fit_rs_vqa_100k.jsonl", "train_data/fit_rs_vqa_100k.jsonl", "FIT-RS-train-1415k.json",
                         images=("FIT-RS_Img/imgv2_split_512_100_vaild", "imgv2_split_512_100_vaild", "FIT-RS_Img",
                                 "images"),
                         boxes=True, tags=True)),
    Corpus("geochat", "GeoChat-Instruct",
           "MBZUAI (K. Kuckreja and others), on the Hugging Face hub as GeoChat_Instruct",
           "GeoChat_Instruct.json (or geochat_instruct.jsonl) and images/ (final_images_llava)",
           conversations("GeoChat_Instruct.json", "geochat_instruct.jsonl", "train_data/geochat_instruct.jsonl",
                         images=("final_images_llava", "images/final_images_llava", "images",
                                 "share/softwares/kartik"),
                         boxes=True, tags=True),
           "boxes {<x1><y1><x2><y2>|<angle>} on 0..100 become <box>[[…]]</box>|<angle> on 0..1000"),
    Corpus("vrsbench", "VRSBench", "X. Li and others (NeurIPS 2024), on the Hugging Face hub as VRSBench",
           "VRSBench_train.json and Images_train/",
           conversations("VRSBench_train.json", images=("Images_train", "images"), boxes=True, tags=True),
           "task tags ([caption], [vqa], [refer]) are taken off; boxes come from 0..100 to 0..1000"),
    Corpus("rsvg", "RSVG", "Y. Sun and others (ACM Multimedia 2022), with GeoVG",
           "rsvg_train.txt with rows image,x1,y1,x2,y2,sentence (pixels), and images/", remote_sensing.rsvg,
           "the row form is the one that later loaders of the set read"),
    Corpus("dior_rsvg", "DIOR-RSVG", "Northwestern Polytechnical University (Y. Zhan and others, TGRS 2023)",
           "Annotations/*.xml, JPEGImages/*.jpg, train.txt", remote_sensing.dior_rsvg,
           "numbers in train.txt count objects over all XML files in the order of their names; images are DIOR's, "
           "test images included: run vitp data leaks before DIOR is used downstream"),
    Corpus("isprs_sar", "ISPRS SAR", "ISPRS, as a set of radar scenes with classes", "one folder of images a class",
           scene_folders("", question=_COVER)),
    Corpus("sentinel12", "SAR Sentinel-1&2", "Kaggle, as Sentinel-1&2 image pairs (segregated by terrain)",
           "v_2/{agri,barrenland,grassland,urban}/s1/*.png (s2 is the optical twin and is left out)",
           scene_folders("v_2", "", question=_COVER, only="s1")),
    Corpus("vhm", "VHM", "OpenDataLab (C. Pang and others, AAAI 2025), on the Hugging Face hub as VHM_dataset_sft",
           "list_sft.json or VHM_sft.json, and the unpacked image folders",
           conversations("list_sft.json", "VHM_sft.json", images=("images", ""), boxes=True)),
    Corpus("levir_cc", "LevirCC", "Beihang University (C. Liu and others, TGRS 2022)",
           "LevirCCcaptions.json and images/{train,val,test}/{A,B}/*.png", remote_sensing.levir_cc,
           "two images a record; only the split train"),
    Corpus("gaia", "GAIA", "Orion-AI-Lab (A. Zavras and others), on the Hugging Face hub as GAIA",
           "train_data.json and images/<id>.jpg as img2dataset fetched them", remote_sensing.gaia,
           "addresses that no longer answer are findings"),
    Corpus("million_aid", "Million-AID", "Wuhan University (Y. Long and others)",
           "train/ with nested folders of classes", scene_folders("train", "", question=_SCENE),
           "the innermost folder is the class; the test part has no labels"),
)
_MEDICAL = (
    Corpus("gmai_mmbench", "GMAI-MMBench", "OpenGVLab (J. Ye and others), on the Hugging Face hub",
           "GMAI_mm_bench_VAL.tsv", medical.gmai_mmbench,
           "images are base64 in the table and are written to OUT/images"),
    Corpus("open_i", "Open-i", "the US National Library of Medicine, as Open-i (Indiana University chest X-rays)",
           "ecgen-radiology/*.xml and NLMCXR_png/*.png", medical.open_i),
    Corpus("huatuo_oa", "Huatuo (PubMedVision alignment)", _HUATUO, "PubMedVision_Alignment_VQA.json and images/",
           conversations("PubMedVision_Alignment_VQA.json", images=("", "images")), _MARKS),
    Corpus("huatuo_vqa", "Huatuo (PubMedVision instruction tuning)", _HUATUO,
           "PubMedVision_InstructionTuning_VQA.json and images/",
           conversations("PubMedVision_InstructionTuning_VQA.json", images=("", "images")), _MARKS),
    Corpus("pmc_oa", "PMC-OA", "W. Lin and others (MICCAI 2023), on the Hugging Face hub",
           "pmc_oa.jsonl and images/", medical.pmc_oa),
    Corpus("pmc_vqa", "PMC-VQA", "X. Zhang and others, on the Hugging Face hub",
           "train.csv (or train_2.csv) and figures/ or images/", medical.pmc_vqa),
    Corpus("omnimedvqa", "OmniMedVQA", "Y. Hu and others (CVPR 2024), on OpenXLab",
           "QA_information/Open-access/*.json and Images/", medical.omnimedvqa),
    Corpus("quilt_1m", "Quilt-1M", "W. Ikezogwo and others (NeurIPS 2023), on Zenodo",
           "quilt_1M_lookup.csv and quilt_1m/ or images/", medical.quilt_1m),
    Corpus("quilt_instruct", "Quilt-Instruct", "M. S. Seyfioglu and others (CVPR 2024), on the Hugging Face hub",
           "quilt_instruct_107k.json (or quilt_instruct.json) and quilt_1m/ or images/",
           conversations("quilt_instruct_107k.json", "quilt_instruct.json", images=("quilt_1m", "images", ""))),
)
_GENERAL = (
    Corpus("general", "LLaVA or InternVL rows", "their own authors (the paper takes Mini-InternVL's general data)",
           "train.jsonl or train.json, and images below the same folder",
           conversations("train.jsonl", "train.json", images=("", "images"))),
)
# fmt: on

_DOMAINS = {"remote sensing": _REMOTE_SENSING, "medical": _MEDICAL, "general": _GENERAL}
CORPORA: dict[str, Corpus] = {
    one.name: replace(one, domain=domain) for domain, sets in _DOMAINS.items() for one in sets
}
"""Name → pretraining set. How often a mixture takes each is in `vitp.recipes.paper`."""


def corpus(name: str) -> Corpus:
    """Return a pretraining set.

    Raises:
        ConfigError: There is no such set.
    """
    return published_set(CORPORA, name, "pretraining set", "corpora")
