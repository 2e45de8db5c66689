"""Words that domains name their classes with: the micro tokenizer should not have to spell them out."""

from __future__ import annotations

_WORDS = """
airplane aircraft airport apron baseball basketball bare beach bridge building bus car chimney
container court crane crop cyclist dam diamond dock expressway farmland field forest golf ground
harbor harbour helicopter helipad house industrial intersection lake large small vehicle meadow
minibus overpass parking pier pitch plane playground pool pond port quay railway ramp residential
river road roundabout runway sea ship shrub soccer stadium storage swimming tank tennis terminal
track train tree truck van vegetation vessel warehouse water wetland windmill yard barge dredger
wagon buoy basin rail mud scrub lane gravel asphalt roof cloud shadow snow ice sand soil grass red
white blood cell cells platelet platelets nucleus tumor lesion polyp lung liver kidney spleen heart
bone brain edema infection opacity normal abnormal benign malignant organ vessel tissue gland
background other none
"""

DOMAIN_WORDS: tuple[str, ...] = tuple(_WORDS.split())
