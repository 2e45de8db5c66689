"""The wordings of all questions. At least six each, short, and chosen independently of the answer.

`{any}` is "any ships" or "any water", `{many}` the plural, `{one}` the name, `{the}` a referring expression.
"""

from __future__ import annotations

# fmt: off
CAPTION = (
    "Describe the image.", "What does the image show?", "Write a caption for this image.",
    "Give a short description of the scene.", "What can be seen here?", "Summarise the image in a sentence.",
    "Caption this.",
)
FIRST_CAPTION = (
    "Describe the first image.", "What does the first image show?", "Write a caption for Image-1.",
    "Give a short description of Image-1.", "What can be seen at the earlier date?",
    "Summarise the first image in a sentence.",
)
CHANGE_CAPTION = (
    "Describe what changed between the two images.", "What is different in the second image?",
    "Write a caption for the change.", "Summarise the change in a sentence.",
    "How does the second image differ from the first?", "What happened between the two dates?",
)
SCENE = (
    "What kind of scene is this?", "Classify the image.", "Which scene class fits the image?",
    "Name the type of scene.", "What type of place is shown?", "What is the category of the whole image?",
)
SCENE_OPTIONS = (
    "Which fits the image: {options}?", "Choose the class of the image: {options}.",
    "Is this scene {options}?", "Pick the scene type from: {options}.", "What is shown: {options}?",
    "Select the right category: {options}.",
)
TAGS = (
    "Which classes fit the image? Name all.", "List all classes that apply to the image.",
    "Tag the image with all classes that fit.", "Name every class that is shown.",
    "Which of the known classes does the image show?", "Give all labels of the whole image.",
)
PRESENCE = (
    "Do you see {any}?", "Does the image show {any}?", "Does this image contain {any}?",
    "Can you find {any} here?", "Did the image catch {any}?", "Would one find {any} in this image?",
    "Can {any} be seen? Answer yes or no.",
)
COUNT = (
    "How many {many} are there?", "Count the {many}.", "What is the number of {many}?",
    "How many {many} does the image show?", "Give the exact count of {many}.", "How many {many} can you see?",
)
COUNT_COMPARE = (
    "Are there more {a} or more {b}?", "Which are more numerous, {a} or {b}?", "More {a} or more {b}?",
    "What is there more of: {a} or {b}?", "Which occur more often, {a} or {b}?",
    "Compare the counts of {a} and {b}: which is larger?",
)
RELATION = (
    "Is {a} {relation} {b}?", "Does {a} lie {relation} {b}?", "Would you say {a} is {relation} {b}?",
    "SeenBands from {b}, is {a} {relation} it?", "Can {a} be found {relation} {b}?",
    "Yes or no: {a} is {relation} {b}.",
)
RELATION_WHICH = (
    "Which is further {way}, {a} or {b}?", "What lies further {way}: {a} or {b}?",
    "Of {a} and {b}, which is further {way}?", "Further {way}: {a} or {b}?",
    "Which one is found further {way}, {a} or {b}?", "Name the one further {way}: {a} or {b}.",
)
POSITION = (
    "In which part of the image is {the}?", "Which ninth of the image holds {the}?",
    "Roughly where is {the}?", "In what part of the picture does {the} lie?",
    "Name the part of the image with {the}.", "Which area of the image shows {the}?",
)
SIZE = (
    "How big is {the}: tiny, small, medium or large?", "What size has {the} relative to the image?",
    "Judge the size of {the}.", "Is {the} tiny, small, medium or large?", "How large does {the} appear?",
    "Give a size word for {the}.",
)
BOX = (
    "Where is {the}?", "Give the box of {the}.", "Locate {the}.", "Find {the} in the image.",
    "Draw a box around {the}.", "Detect {the}.", "What are the coordinates of {the}?",
)
BOXES = (
    "Find all {many}.", "Where are {many}? Give all boxes.", "Detect every {one}.",
    "Give the boxes of all {many}.", "Locate each {one}.", "List the boxes of {many}.", "Box all {many}.",
)
BOXES_SOME = (
    "Box the first {limit} {many} from the top.", "Find the {limit} topmost {many}.",
    "Give boxes of the upper {limit} {many}.", "Locate {limit} {many}, starting from the top.",
    "List the boxes of the {limit} highest-lying {many}.", "Detect the {limit} {many} nearest to the top.",
)
ORIENTED = (
    "Find all {many} as oriented boxes.", "Give the rotated boxes of all {many}.",
    "Detect every {one} with an oriented box.", "Where are {many}? Answer with the four corners.",
    "List the oriented boxes of {many}.", "Mark each {one} with a rotated box.",
)
REGION_CLASS = (
    "What is in {box}?", "Classify the object in {box}.", "Which class has the object in {box}?",
    "Name what {box} holds.", "{box} shows what?", "What kind of object is {box}?",
)
REGION_SIZE = (
    "How big is the object in {box}?", "Give a size word for {box}.",
    "Is {box} tiny, small, medium or large?", "What size has the object in {box}?",
    "Judge the size of what {box} holds.", "How large does the object in {box} appear?",
)
REGION_DIRECTION = (
    "How is the object in {box} oriented?", "Is {box} horizontal, vertical, rising or falling?",
    "Which direction has the long side of {box}?", "What is the orientation of the object in {box}?",
    "How does the object in {box} lie?", "Name the direction of what {box} holds.",
)
GRID = (
    "Name each cell of a {n} by {n} grid.", "Describe the image as a {n} by {n} grid of classes.",
    "Give the class of every cell, {n} by {n}, row by row.", "Map the image on a {n} by {n} grid.",
    "What is in each cell of a {n} by {n} grid?", "Label a {n} by {n} grid row by row.",
)
GRID_ROW = (
    "Of a {n} by {n} grid, name the cells in row {row}.", "In the {n} by {n} grid, what is in row {row}?",
    "With {n} by {n} cells, give the classes along row {row}.", "Of a {n} by {n} grid, label row {row}.",
    "Of the {n} by {n} grid, read row {row}.", "{n} by {n} grid: list the cells of row {row}.",
)
CELLS = (
    "Which cells of a {n} by {n} grid show {one}?", "In which cells of the {n} by {n} grid is {one}?",
    "List the {one} cells of a {n} by {n} grid.", "Where is {one} on a {n} by {n} grid?",
    "Give row,column of all {one} cells, {n} by {n} grid.", "Mark {one} on a {n} by {n} grid.",
)
# The place comes last and in one form: a small language model learns to look there several times sooner.
CELL = (
    "In a {n} by {n} grid, what is in row {row}, column {column}?",
    "On the {n} by {n} grid, name row {row}, column {column}.",
    "Grid of {n} by {n} cells: which class has row {row}, column {column}?",
    "With {n} by {n} cells, what is at row {row}, column {column}?",
    "{n} by {n} grid: label row {row}, column {column}.",
    "Class on a {n} by {n} grid at row {row}, column {column}?",
)
# PTP's sentences (Wang et al. 2022): blocks are numbered row by row from 1.
BLOCK_CLASS = (
    "On a {n} by {n} grid, the block {block} has a:", "Of {n} by {n} blocks, which class is in block {block}?",
    "With {n} by {n} blocks, what does block {block} have?", "{n} by {n} blocks: name what is in block {block}.",
    "Which object is in block {block} of {n} by {n}?", "On {n} by {n} blocks, classify block {block}.",
)
BLOCK_OF = (
    "On a {n} by {n} grid, which block has {the}?", "Of {n} by {n} blocks, give the one with {the}.",
    "{n} by {n} blocks: where is {the}?", "With {n} by {n} blocks, in which one is {the}?",
    "Give the block of {the} on a {n} by {n} grid.", "Which of {n} by {n} blocks holds {the}?",
)
POINT = (
    "What is at ({x}, {y})?", "Name the class at ({x}, {y}).", "Which class has the point ({x}, {y})?",
    "What lies at ({x}, {y})?", "Classify the pixel at ({x}, {y}).", "({x}, {y}) shows what?",
)
COVER = (
    "What share of the image is {one}, to the nearest {step} percent?",
    "How much of the image is {one}? Round to {step} percent.",
    "Estimate the cover of {one} in steps of {step} percent.",
    "What percentage does {one} cover, rounded to {step}?",
    "Give the area share of {one}, rounded to {step} percent.",
    "{one}: which part of the image, to {step} percent?",
)
DOMINANT = (
    "What covers most of the image?", "Which class has the largest area?", "Name the dominant class.",
    "What takes up the largest part of the image?", "What is the main cover here?",
    "Which class covers the most pixels?",
)
CHANGE = (
    "Did anything change between the two images?", "Is there any change?",
    "Do the two images differ in content?", "Has something changed?",
    "Was the place altered between the two dates?", "Does the second image show a change?",
)
CHANGE_PART = (
    "Did anything change in the {part}?", "Is there any change in the {part} of the image?",
    "Does the {part} differ between the two images?", "Has something changed in the {part}?",
    "Was the {part} altered?", "Does the second image show a change in the {part}?",
)
CHANGE_BOXES = (
    "Where did something change?", "Give the boxes of all changes.", "Locate the changed regions.",
    "Box every change.", "Which regions differ? Give boxes.", "Find all changes between the images.",
)
CHANGE_BOXES_SOME = (
    "Box the first {limit} changes from the top.", "Find the {limit} topmost changes.",
    "Give boxes of the upper {limit} changes.", "Locate {limit} changed regions, starting from the top.",
    "List the boxes of the {limit} highest-lying changes.", "Detect the {limit} changes nearest to the top.",
)
CHANGE_CELLS = (
    "Which cells of a {n} by {n} grid changed?", "List the changed cells of the {n} by {n} grid.",
    "Where is change on a {n} by {n} grid?", "Give row,column of changed cells, {n} by {n} grid.",
    "Mark the change on a {n} by {n} grid.", "In which cells, {n} by {n}, do the images differ?",
)
CHANGE_SHARE = (
    "What share of the image changed, to the nearest percent?",
    "How much of the area changed? Round to one percent.", "Estimate the changed area in whole percent.",
    "What percentage of the image is different?", "Give the changed share, rounded to one percent.",
    "How many percent of the pixels changed?",
)
TRANSITIONS = (
    "What changed into what?", "Which classes became which others?", "List the changes of class, the largest first.",
    "What turned into what between the two dates?", "Name each change from one class to another.",
    "How did the classes change?",
)
TRANSITION_POINT = (
    "What was at ({x}, {y}) before, and what is there now?", "What did ({x}, {y}) change from, and to what?",
    "Name the class at ({x}, {y}) at the first and at the second date.",
    "Which class had the point ({x}, {y}), and which has it now?",
    "Classify the point ({x}, {y}) in both images.", "({x}, {y}): what before, what after?",
)
APPEARED = (
    "What appeared in the second image?", "Which objects are new?", "What is there now that was not before?",
    "List the objects that were added.", "What came into view between the dates?",
    "Name what is only in the second image.",
)
DISAPPEARED = (
    "What disappeared?", "Which objects are gone?", "What is missing in the second image?",
    "List the objects that were removed.", "What was there before and is not now?",
    "Name what is only in the first image.",
)
LENGTH = (
    "How long is {the}?", "What is the length of {the}?", "Give the length of {the} on the ground.",
    "Estimate how long {the} is.", "How long is {the} in reality?", "Measure the length of {the}.",
)
AREA = (
    "What area does {the} cover?", "How large is {the} on the ground?", "Give the area of {the}.",
    "Estimate the ground area of {the}.", "How much ground does {the} take up?", "Measure the area of {the}.",
)
COVER_AREA = (
    "How much ground is {one}?", "What area does {one} cover on the ground?", "Give the ground area of {one}.",
    "Estimate the area of {one} in hectares or square metres.", "How large is the area of {one} in reality?",
    "Measure the ground that is covered by {one}.",
)
DISTANCE = (
    "How far is {a} from {b}?", "What is the distance between {a} and {b}?",
    "Give the distance on the ground from {a} to {b}.", "Estimate how far apart {a} and {b} are.",
    "How far apart are {a} and {b}?", "Measure the distance from {a} to {b}.",
)
RESOLUTION = (
    "What is the ground resolution of the image?", "How much ground does one pixel show?",
    "How large is a pixel on the ground?", "Give the size of a pixel on the ground.",
    "Estimate the ground sampling distance.", "Which side has a pixel on the ground?",
)
EXTENT = (
    "How wide is the ground that the image shows?", "What distance does the image span from left to right?",
    "Give the width of the scene on the ground.", "Estimate how far it is from the left edge to the right one.",
    "How much ground lies between the left and right edges?", "How wide is this scene in reality?",
)
SENSOR = (
    "Which sensor took the image?", "Name the sensor of this image.", "What recorded this image?",
    "Which instrument is the image from?", "From which sensor is this image?", "Tell the sensor.",
)
DATE = (
    "When was the image taken?", "Give the date of the image.", "On which day was this recorded?",
    "What is the acquisition date?", "Which date is the image from?", "Tell when this was taken.",
)
SEASON = (
    "In which season was the image taken?", "Which season is shown?", "Name the season.",
    "What time of the year is it?", "Which season is the image from?", "Tell the season of this scene.",
)
REGION = (
    "Which region is shown?", "Where on earth was the image taken?", "Name the region of this image.",
    "In which region does this scene lie?", "Which part of the world is this?", "Tell the region.",
)
MODALITY = (
    "How was the image taken?", "Which modality is this?", "Name the imaging modality.", "What kind of scan is shown?",
    "Which technique recorded this image?", "Tell the modality.",
)
PLANE = (
    "In which plane is the slice?", "Which plane is shown?", "Name the plane of this slice.",
    "How is the slice oriented?", "Along which plane was this cut?", "Tell the anatomical plane.",
)
BODY_PART = (
    "Which part of the body is shown?", "Name the body part.", "What region of the body was scanned?",
    "Which body part was examined?", "Which part of the body is this image of?", "Tell the body part.",
)
BODY_SIDE = (
    "Which side of the body was examined?", "Is the left or the right side shown?", "Name the side of the body.",
    "Which of the patient's sides is this?", "Which side is the image of?", "Tell the laterality.",
)
GREY_WINDOW = (
    "Which window is the image shown in?", "How is the image windowed?", "Name the window of this image.",
    "Which grey-level window was chosen?", "What is this image's window setting called?", "Tell the window.",
)
METADATA_QUESTIONS = {
    "sensor": SENSOR, "date": DATE, "season": SEASON, "region": REGION, "modality": MODALITY, "plane": PLANE,
    "body_part": BODY_PART, "laterality": BODY_SIDE, "window": GREY_WINDOW,
}
THIRD = (
    "In which third of the volume is this slice?", "Which third of the scan does the slice come from?",
    "Name the third of the volume that holds the slice.", "Where in the volume does the slice lie, by thirds?",
    "From which third of the scanned range is this?", "Tell the third of the volume.",
)
LEVEL_OF = (
    "Does the slice lie {before} the {one}, {after} it, or pass through it?",
    "Is this slice {before} the {one}, {after} it, or through it?",
    "Where is the slice: {before} the {one}, {after} it, or through it?",
    "Tell whether the slice is {before} the {one}, {after} it, or through it.",
    "How does the slice lie to the {one}: {before} it, {after} it, or through it?",
    "Say if the {one} is cut; if not, whether the slice is {before} it or {after} it.",
)
PATIENT_SIDE = (
    "On which side of the patient is the {one}?", "Is the {one} on the patient's left or right?",
    "Which of the patient's sides holds the {one}?", "In the patient's right or left half: where is the {one}?",
    "Tell the patient's side on which the {one} lies.", "Seen from the patient, is the {one} left or right?",
)
PICTURE_SIDE = (
    "On which side of the picture is the {one}?", "Is the {one} in the left or right half of the picture?",
    "Which half of the picture holds the {one}?", "Left or right in the picture: where is the {one}?",
    "Tell the picture's side on which the {one} lies.", "As displayed, is the {one} left or right?",
)
SIDE_OF = (
    "Is the {a} to the patient's left or right of the {b}?", "Does the {a} lie to the patient's right or left of the {b}?",
    "For the patient, is the {a} left or right of the {b}?", "Going from the {b} to the {a}, does one go to the patient's left or right?",
    "Tell on which side of the {b} the {a} lies, by the patient's sides.", "Seen from the patient, is the {a} left or right of the {b}?",
)
DIAMETER = (
    "What is the longest diameter of {the} in the slice?", "How large is {the} across at its longest?",
    "Give the longest diameter of {the}.", "Measure {the} along its longest diameter.",
    "How long is the largest diameter of {the}?", "Estimate the longest diameter of {the}.",
)
SPAN = (
    "How far does the {one} reach {along}?", "Give the extent of the {one} {along}.",
    "Measure how far the {one} extends {along}.", "What is the extent of the {one} {along}?",
    "Estimate the extent of the {one} {along}.", "Over what length does the {one} extend {along}?",
)
SLICE_AREA = (
    "What area does the {one} cover in the slice?", "How large is the {one} in the slice?",
    "Give the area of the {one}.", "Measure the area of the {one} in this slice.",
    "Estimate the area of the {one} in the slice.", "What is the cross section of the {one}?",
)
HELD_VOLUME = (
    "What volume of the {one} do {these} hold?", "How much of the {one} lies in {these}?",
    "Give the volume of the {one} within {these}.", "Measure how much {one} {these} hold.",
    "Estimate the volume of the {one} in {these}.", "What is the {one}'s volume within {these}?",
)
WHOLE_VOLUME = (
    "What is the volume of the {one}?", "How large is the whole {one}, as a volume?", "Give the volume of the {one}.",
    "Measure the volume of the whole {one}.", "Estimate the {one}'s volume.", "How many millilitres has the {one}?",
)
ABNORMAL = (
    "Is anything abnormal?", "Is there any abnormal finding?", "Does the image show a finding?",
    "Can a finding be seen here?", "Is there anything abnormal in the image?", "Does anything look abnormal?",
)
FINDINGS = (
    "Which findings are there?", "Name the abnormal findings.", "What is abnormal in this image?",
    "List the findings.", "Which abnormal findings does the image show?", "Tell what is abnormal, or none.",
)
GROWTH = (
    "Did the {one} grow between the two studies?", "How did the {one} change in size since the prior study?",
    "Is the {one} larger, smaller or unchanged in the current study?", "Compare the size of the {one} in the two studies.",
    "Has the {one} become larger, smaller, or neither?", "Tell how the size of the {one} changed.",
)
GROWTH_AREA = (
    "By what area did the {one} change in this slice?", "How much larger or smaller is the {one} in this slice now?",
    "Give the change of the {one}'s area.", "Measure by how much the area of the {one} changed.",
    "Estimate the change of the {one}'s area in the slice.", "What is the difference of the {one}'s areas?",
)
GROWTH_DIAMETER = (
    "By how much did the longest diameter of the {one} change?", "How much longer or shorter is the {one}'s longest diameter now?",
    "Give the change of the {one}'s longest diameter.", "Measure the change of the longest diameter of the {one}.",
    "Estimate how much the {one}'s longest diameter changed.", "What is the difference of the {one}'s longest diameters?",
)
GROWTH_VOLUME = (
    "By what volume did the {one} change within this slice?", "How many millilitres has the {one} gained or lost in this slice?",
    "Give the change of the {one}'s volume in this slice.", "Measure by how much the {one}'s volume in the slice changed.",
    "Estimate the change of volume of the {one} in the slice.", "What is the difference of the {one}'s volumes in this slice?",
)
COLOUR = (
    "Which colour covers most of the picture?", "What is the dominant colour?", "Name the most frequent colour.",
    "Which colour do most pixels have?", "What colour is most of the image?", "Which colour prevails?",
)
BRIGHTER_HALF = (
    "Which half is brighter, the {first} or the {second} one?", "Is the {first} or the {second} half brighter?",
    "Where is the picture brighter: {first} or {second} half?", "Name the brighter half: {first} or {second}.",
    "Does the {first} or the {second} half hold more light?", "The brighter half: {first} or {second}?",
)
TEXTURE_HALF = (
    "Which half has more texture, the {first} or the {second} one?", "Is there more detail in the {first} or the {second} half?",
    "Where is more structure: {first} or {second} half?", "Name the half with more texture: {first} or {second}.",
    "Is the {first} or the {second} half rougher?", "The half with more detail: {first} or {second}?",
)
TURNED = (
    "The second picture is the first one, turned clockwise. By how many degrees?", "By how many degrees clockwise was Image-1 turned to give Image-2?",
    "How far is the second picture turned clockwise against the first, in degrees?", "Give the clockwise rotation from the first to the second picture in degrees.",
    "Turning the first picture clockwise gives the second. How many degrees?", "What clockwise angle, in degrees, lies between Image-1 and Image-2?",
)
MIRRORED = (
    "Is the second picture the mirror image of the first?", "Is Image-2 a mirrored copy of Image-1?", "Were left and right exchanged in the second picture?",
    "Does the second picture show the first one as in a mirror?", "Has the second picture been flipped from left to right?", "Is the copy mirrored?",
)
MISSING_PATCH = (
    "One cell of the {n}×{n} grid is blank. Which row and column?", "Which cell of the {n}×{n} grid is missing?",
    "Divide the picture into {n}×{n} cells: which one is blank?", "Where is the missing patch on the {n}×{n} grid?",
    "Name row and column of the blank cell of the {n}×{n} grid.", "A patch of the {n}×{n} grid was taken out. Which one?",
)
CROP_PLACE = (
    "The second picture is a part of the first. Where does it lie?", "From which part of the first picture is the second cut?",
    "In which ninth of Image-1 does Image-2 lie?", "Where in the first picture is the second one found?",
    "Locate the second picture in the first.", "Which part of Image-1 does Image-2 show?",
)
LARGER_CROP = (
    "Both pictures are parts of one image. Which shows the larger part?", "Which picture shows more of the scene, the first or the second?",
    "One picture lies within the other. Which is the larger part, first or second?", "Is the first or the second picture cut from a larger area?",
    "Which of the two crops covers more: first or second?", "First or second: which crop shows the larger part of the image?",
)
# fmt: on
