"""What the eICU mortality features are called, their units, clip limits and transforms, in one table.

The limits are public round numbers: the range that is plausible as measured in an intensive care patient
(APACHE's own scoring bounds where it has some), which clips about the outermost half percent at each end.
They are constants of the contract, never computed from a site's table, so no extreme value leaves a site.
`eicu_features.py` computes the columns of day 1, `eicu_grid.py` those of the first 24 hours.
"""

from dataclasses import dataclass

OUTCOME = "died"
REFERENCE = "apache_iva"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Unit and public limits of a variable; `skewed` ones are put through log1p before they are scaled."""

    unit: str
    low: float
    high: float
    skewed: bool = False


def _of(unit: str, low: float, high: float, skewed: bool = False) -> Limits:
    return Limits(unit=unit, low=low, high=high, skewed=skewed)


APS = {  # apacheApsVar: worst value of day 1 (-1 = missing)
    "urine": _of("mL/24 h", 0, 8000, True), "wbc": _of("10^9/L", 0.5, 50, True),
    "temperature": _of("degC", 32, 40.5), "respiratoryrate": _of("1/min", 4, 60),
    "sodium": _of("mmol/L", 115, 160), "heartrate": _of("1/min", 25, 190), "meanbp": _of("mmHg", 40, 200),
    "ph": _of("1", 6.95, 7.65), "hematocrit": _of("%", 17, 52), "creatinine": _of("mg/dL", 0.2, 12, True),
    "albumin": _of("g/dL", 1.2, 5), "pao2": _of("mmHg", 30, 450, True), "pco2": _of("mmHg", 15, 95, True),
    "bun": _of("mg/dL", 3, 120, True), "glucose": _of("mg/dL", 40, 600, True),
    "bilirubin": _of("mg/dL", 0.1, 25, True), "fio2": _of("%", 21, 100)}
PF = {"pf": _of("mmHg", 40, 600, True)}
GCS = {"eyes": _of("points", 1, 4), "motor": _of("points", 1, 6), "verbal": _of("points", 1, 5),
       "gcs": _of("points", 3, 15)}
FLAGS = ("gcs_not_assessable", "intubated", "vent", "dialysis")
PERSON = {"age": _of("years", 16, 90), "female": _of("0/1", 0, 1)}
NORMAL = {  # reference points of APACHE III
    "heartrate": 75.0, "meanbp": 90.0, "temperature": 38.0, "respiratoryrate": 19.0, "hematocrit": 45.5,
    "wbc": 11.5, "sodium": 140.0, "glucose": 130.0, "ph": 7.4, "pco2": 40.0}
CHRONIC = ("aids", "hepaticfailure", "lymphoma", "metastaticcancer", "leukemia", "immunosuppression",
           "cirrhosis", "diabetes", "electivesurgery", "readmit", "ima", "midur", "ventday1", "oobventday1",
           "oobintubday1", "thrombolytics")
BODY = {"bmi": _of("kg/m^2", 12, 70), "weight": _of("kg", 25, 300), "preicu_h": _of("h", 0, 720, True)}
ADMIT_SOURCES = ("Emergency Department", "Floor", "Operating Room", "Step-Down Unit (SDU)", "Direct Admit",
                 "Recovery Room", "Other ICU", "Other Hospital", "Unknown")
ADMIT_ALIASES = {"Acute Care/Floor": "Floor", "ICU to SDU": "Step-Down Unit (SDU)", "PACU": "Recovery Room",
                 "Chest Pain Center": "Emergency Department", "ICU": "Other ICU"}
UNIT_TYPES = ("Med-Surg ICU", "MICU", "Cardiac ICU", "SICU", "CCU-CTICU", "Neuro ICU", "CSICU", "CTICU")
DIAGNOSES = (  # in order of precedence; the first group with a keyword that occurs wins
    ("sepsis", ("sepsis",)), ("cardiac_arrest", ("arrest",)), ("ami", ("infarction",)),
    ("chf", ("chf", "congestive")), ("rhythm", ("rhythm",)), ("acs", ("angina",)),
    ("stroke", ("cva", "cerebrov")), ("ich", ("hemorrhage, intracr", "intracranial", "hematoma", "subarach")),
    ("seizure", ("seizure",)), ("coma", ("coma",)), ("pneumonia", ("pneumonia",)),
    ("copd", ("emphysema", "bronchitis", "asthma")), ("resp", ("respiratory",)), ("pe", ("embolus, pulm",)),
    ("gi_bleed", ("bleeding",)), ("dka", ("diabetic",)), ("overdose", ("overdose", "withdrawal")),
    ("renal", ("renal",)), ("trauma", ("trauma",)), ("cabg", ("cabg", "coronary artery bypass")),
    ("valve", ("valve",)), ("neurosurg", ("craniotomy",)),
    ("vascular", ("endarterectomy", "aneurysm", "graft")), ("surgery", ("surgery", "surgical")),
    ("unknown", ("unknown",)))
# no stay of the demo's main cohort: counted with `other`, as unseen words are
RARE_DIAGNOSES = ("neurosurg",)
DIAGNOSIS_GROUPS = (*(group for group, _ in DIAGNOSES if group not in RARE_DIAGNOSES), "other")

VITALS = {  # hours 0 to 23: minimum, maximum, mean and last of the hourly values
    "hr": _of("1/min", 30, 170), "map": _of("mmHg", 30, 150), "sbp": _of("mmHg", 60, 220),
    "dbp": _of("mmHg", 25, 130), "resp": _of("1/min", 4, 50), "o2sat": _of("%", 70, 100),
    "temp": _of("degC", 32, 40)}
LABS = {  # hours 0 to 23: minimum, maximum and last of the hourly values
    "alb": _of("g/dL", 1.2, 5), "bicar": _of("mmol/L", 8, 42), "bili": _of("mg/dL", 0.1, 25, True),
    "bun": _of("mg/dL", 3, 120, True), "ca": _of("mg/dL", 6, 11), "cl": _of("mmol/L", 82, 122),
    "crea": _of("mg/dL", 0.2, 12, True), "glu": _of("mg/dL", 40, 600, True), "hgb": _of("g/dL", 5.5, 17),
    "inr_pt": _of("1", 0.9, 8, True), "k": _of("mmol/L", 2.5, 7), "lact": _of("mmol/L", 0.3, 20, True),
    "mg": _of("mg/dL", 1, 4), "na": _of("mmol/L", 115, 160), "ph": _of("1", 6.95, 7.65),
    "phos": _of("mg/dL", 0.8, 10), "plt": _of("10^9/L", 15, 600, True), "po2": _of("mmHg", 30, 450, True),
    "pco2": _of("mmHg", 15, 95, True), "wbc": _of("10^9/L", 0.5, 50, True), "be": _of("mmol/L", -20, 18),
    "ast": _of("U/L", 8, 3000, True), "alp": _of("U/L", 25, 600, True), "bnd": _of("%", 0, 80, True),
    "tnt": _of("ng/mL", 0.01, 12, True), "fio2": _of("%", 21, 100), "ptt": _of("s", 20, 180, True)}
URINE = _of("mL/24 h", 0, 8000, True)
VITAL_STATS = ("min", "max", "mean", "last")
LAB_STATS = ("min", "max", "last")


def _slug(text: str) -> str:
    letters = (letter if letter.isalnum() else "_" for letter in text.lower())
    return "".join(letters).strip("_").replace("__", "_")


ADMIT_COLUMNS = {f"admit_{_slug(source)}": source for source in ADMIT_SOURCES}
UNIT_COLUMNS = {f"unit_{_slug(unit)}": unit for unit in UNIT_TYPES}
DIAGNOSIS_COLUMNS = {f"dx_{group}": group for group in DIAGNOSIS_GROUPS}


def _deviation(name: str) -> Limits:
    """Return the limits of |x - normal| that follow from those of x."""
    limits, normal = APS[name], NORMAL[name]
    return _of(limits.unit, 0, round(max(limits.high - normal, normal - limits.low), 6))


def _flags(names: tuple[str, ...]) -> dict[str, Limits]:
    return {name: _of("0/1", 0, 1) for name in names}


_APS16 = {**APS, **PF, **GCS, **_flags(FLAGS), **PERSON}
_APSX = {**{f"dev_{name}": _deviation(name) for name in NORMAL},
         "age2": _of("years^2/100", 0, 20)}  # (age - 60)^2 / 100
_CTX = {**_flags((*CHRONIC, "emergencysurgery")), **BODY,
        **_flags((*ADMIT_COLUMNS, *UNIT_COLUMNS, *DIAGNOSIS_COLUMNS))}
GRID = {**{f"d24_{name}_{stat}": limits for name, limits in VITALS.items() for stat in VITAL_STATS},
        **{f"d24_{name}_{stat}": limits for name, limits in LABS.items() for stat in LAB_STATS},
        "d24_urine_sum": URINE}

FEATURES = {**_APS16, **_APSX, **_CTX, **GRID}
FEATURE_SETS = {"aps16": tuple(_APS16), "apsx": (*_APS16, *_APSX), "ctx": (*_APS16, *_APSX, *_CTX),
                "full": tuple(FEATURES)}
