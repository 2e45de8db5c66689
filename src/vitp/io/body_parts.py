"""DICOM's terms for body parts in plain words (PS3.16, annex L).

Only these are taken from a header: the field is at times filled with other text, which could tell of whom.
"""

from __future__ import annotations

_SAME = """abdomen ankle anus aorta appendix arm axilla back bladder bone brain breast bronchus buttock calf chest chin
clavicle coccyx colon cornea duodenum ear elbow esophagus eye face fibula finger foot forearm forehead gallbladder hand
head heart hip humerus ileum jejunum jaw kidney knee larynx leg liver lung maxilla mediastinum mandible mouth muscle
neck nose orbit ovary pancreas patella pelvis penis pharynx prostate radius rectum rib sacrum scalp scapula sclera
scrotum shoulder skin skull spine spleen sternum stomach thigh thumb thymus thyroid tibia toe tongue trachea ulna
ureter urethra uterus vagina vulva wrist zygoma"""

BODY_PARTS = {
    **{name.upper(): name for name in _SAME.split()},
    "ABDOMENPELVIS": "abdomen and pelvis",
    "CHESTABDOMEN": "chest and abdomen",
    "CHESTABDPELVIS": "chest, abdomen and pelvis",
    "CHESTABDOMENPELVIS": "chest, abdomen and pelvis",
    "THORAX": "chest",
    "HEADNECK": "head and neck",
    "NECKCHEST": "neck and chest",
    "NECKCHESTABDOMEN": "neck, chest and abdomen",
    "NECKCHESTABDPELV": "neck, chest, abdomen and pelvis",
    "CSPINE": "cervical spine",
    "CTSPINE": "cervical and thoracic spine",
    "TSPINE": "thoracic spine",
    "TLSPINE": "thoracic and lumbar spine",
    "LSPINE": "lumbar spine",
    "LSSPINE": "lumbar spine and sacrum",
    "SSPINE": "sacral spine",
    "ACJOINT": "acromioclavicular joint",
    "SCJOINT": "sternoclavicular joint",
    "SIJOINT": "sacroiliac joint",
    "TMJ": "temporomandibular joint",
    "CAROTID": "carotid artery",
    "CEREBELLUM": "cerebellum",
    "EXTREMITY": "extremity",
    "WHOLEBODY": "whole body",
    "LOWERLIMB": "leg",
    "UPPERLIMB": "arm",
    "ADRENAL": "adrenal gland",
    "PAROTID": "parotid gland",
    "PITUITARY": "pituitary gland",
    "IAC": "internal auditory canal",
    "UTERUS": "uterus",
}
"""Term in capitals without blanks → plain words."""
