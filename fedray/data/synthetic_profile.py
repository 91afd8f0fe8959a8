"""The numbers of the synthetic ICU: rounded shapes that make a stay look like one, and published margins.

No row and no table of patients is in here. Three kinds of constants, each with its origin:
- margins over hospitals and stays: published, Pollard et al., The eICU Collaborative Research Database,
  Sci Data 5:180178 (2018);
- marginals, loadings, shares between hospitals, missing rates and coefficients: a compact parametric model,
  rounded by hand and adjusted until the generator met its acceptance; the starting points were summary
  statistics of the open eICU-CRD demo 2.0 (PhysioNet, ODbL 1.0);
- `STANDARD`: means and deviations of what the generator itself draws (experiments/synthetic_icu), public by
  construction, so that features can be standardised without asking a site.
Start reading at `synthetic.py`.
"""

from typing import NamedTuple

GENERATOR_VERSION = "1"  # part of Dataset.version: raise it when a constant or a draw changes

# --- published margins (Pollard et al. 2018) ---------------------------------------------------------------
NUM_HOSPITALS = 208
NUM_STAYS = 200_859
MORTALITY = 18_004 / 200_859  # of all unit stays; unknown for UNKNOWN_STATUS of them
UNKNOWN_STATUS = 1_751 / 200_859
DIED_IN_UNIT = 10_907 / 18_004
NEW_PATIENT = 0.84  # patients per hospital stay, rounded
FEMALE = 0.46
BEDS = {"<100": (46, 12_593), "100 - 249": (62, 41_966), "250 - 499": (35, 45_716),
        ">= 500": (23, 75_305), "": (42, 25_279)}  # hospitals, stays
TEACHING = {"<100": 0, "100 - 249": 1, "250 - 499": 3, ">= 500": 14, "": 1}  # 19 in all; per class: assumed
REGIONS = {"Midwest": 70, "Northeast": 13, "South": 56, "West": 43, "": 26}  # hospitals
BLANK_REGION_AND_BEDS = 20 / 26  # hospitals that report neither: assumed
UNIT_TYPES = {
    "Med-Surg ICU": 0.56, "MICU": 0.087, "CCU-CTICU": 0.076, "Neuro ICU": 0.072, "Cardiac ICU": 0.062,
    "SICU": 0.061, "CSICU": 0.048, "CTICU": 0.031,
}
SIZE_LIMITS = (-2.2, 1.4)  # of a log size, in deviations: the largest hospital has about 8,000 stays
SEVERAL_UNIT_TYPES = {"<100": 0.05, "100 - 249": 0.08, "250 - 499": 0.35, ">= 500": 0.85, "": 0.1}  # assumed


# --- day-1 values: marginal distributions of a standard normal latent --------------------------------------
class Marginal(NamedTuple):
    """Map a latent z to a value: two half-normals that meet (or jump) at `split`, then `shape`.

    shape "plain": as it is; "log": exp; "square": square; "heavy": low + low_sd * sinh(high_sd * z).
    `low`/`high` are the values at the split from below and above (medians where split is 0).
    """

    shape: str
    low: float
    low_sd: float
    high: float
    high_sd: float
    split: float
    minimum: float
    maximum: float
    decimals: int


MARGINALS = {
    "urine": Marginal("square", 38, 16, 38, 16, 0, 0, 12_000, 1),
    "wbc": Marginal("log", 10, 0.5, 10, 0.55, 0, 0.1, 80, 1),
    "temperature": Marginal("heavy", 36.5, 0.3, 0, 1.2, 0, 24, 41, 1),
    "respiratoryrate": Marginal("plain", 12, 6, 18, 15, -0.6, 4, 60, 0),
    "sodium": Marginal("heavy", 138, 5.5, 0, 0.75, 0, 105, 170, 0),
    "heartrate": Marginal("plain", 56, 15, 78, 27, -0.95, 20, 210, 0),
    "meanbp": Marginal("plain", 70, 15, 106, 40, 0.3, 40, 200, 0),
    "ph": Marginal("plain", 7.4, 0.11, 7.4, 0.075, 0, 6.9, 7.7, 2),
    "hematocrit": Marginal("plain", 34, 7, 34, 6.5, 0, 14, 58, 1),
    "creatinine": Marginal("log", 1.0, 0.42, 1.0, 0.85, 0, 0.1, 22, 2),
    "albumin": Marginal("plain", 2.9, 0.7, 2.9, 0.7, 0, 1.0, 5.2, 1),
    "pao2": Marginal("log", 100, 0.45, 100, 0.62, 0, 25, 520, 0),
    "pco2": Marginal("log", 40, 0.26, 40, 0.3, 0, 10, 120, 0),
    "bun": Marginal("log", 19, 0.6, 19, 0.73, 0, 2, 220, 0),
    "glucose": Marginal("log", 130, 0.38, 130, 0.65, 0, 10, 1000, 0),
    "bilirubin": Marginal("log", 0.6, 0.65, 0.6, 1.1, 0, 0.1, 45, 1),
    "fio2": Marginal("plain", 50, 18, 50, 32, 0, 21, 100, 0),
    "age": Marginal("plain", 65, 19, 65, 14.5, 0, 16, 90, 0),
}
GCS_CUTS = {
    "eyes": (-1.5, -1.3, -0.75),
    "motor": (-1.7, -1.68, -1.65, -1.3, -0.95),
    "verbal": (-1.1, -1.0, -0.9, -0.5),
}
GCS_SHARED = 0.9  # correlation of each part's latent with the shared one
FLAG_RATES = {"vent": 0.2, "intubated": 0.11, "dialysis": 0.033}
UNABLE_RATE = 0.011  # meds = 1: Glasgow coma score not assessable; six times as often under ventilation
COMORBID = {  # rate, effect on the log-odds of death
    "hepaticfailure": (0.014, 0.6), "lymphoma": (0.006, 0.5), "metastaticcancer": (0.02, 0.7),
    "leukemia": (0.008, 0.3), "immunosuppression": (0.025, 0.3), "cirrhosis": (0.016, 0.4),
    "diabetes": (0.22, -0.2),
}

# Loadings of each latent on five factors, signed so that more of a factor is sicker:
# low reserve, circulatory drive, carbon dioxide, ventilatory support, kidney.
FACTORS = ("reserve", "drive", "carbon", "support", "kidney")
LOADINGS = {
    "urine": (-0.2, 0, 0, 0, -0.2), "wbc": (0, 0.3, 0, 0.2, 0.15),
    "temperature": (0, 0.1, -0.2, -0.15, -0.15), "respiratoryrate": (0, 0.35, 0, 0, 0.1),
    "sodium": (0, 0, 0.15, 0.1, -0.1), "heartrate": (0, 0.7, 0, 0, 0), "meanbp": (-0.25, 0, 0, 0, -0.05),
    "ph": (0, -0.15, -0.5, -0.1, -0.25), "hematocrit": (-0.65, 0.1, 0.15, 0, -0.15),
    "creatinine": (0, 0, 0, 0, 0.9), "albumin": (-0.7, -0.15, 0, -0.2, -0.2),
    "pao2": (0, -0.2, -0.1, 0.4, -0.1), "pco2": (0, 0, 0.9, 0, 0), "bun": (0.2, 0.05, 0, 0, 0.8),
    "glucose": (-0.2, 0.2, 0, 0, 0.15), "bilirubin": (0, 0.2, -0.15, 0.1, 0.1),
    "fio2": (0, 0, 0.15, 0.6, 0.1), "age": (0.15, -0.2, 0, 0, 0.25), "gcs": (-0.15, -0.15, 0, -0.5, 0),
    "vent": (0.1, 0.1, 0, 0.6, 0.05), "intubated": (0, 0, 0, 0.7, 0), "dialysis": (0.2, 0, 0, 0, 0.3),
}
BETWEEN = {  # share of a latent's variance that lies between hospitals
    "urine": 0.01, "wbc": 0.01, "temperature": 0.03, "respiratoryrate": 0.23, "sodium": 0.09,
    "heartrate": 0.03, "meanbp": 0.06, "ph": 0.1, "hematocrit": 0.08, "creatinine": 0.1, "albumin": 0.14,
    "pao2": 0.06, "pco2": 0.11, "bun": 0.07, "glucose": 0.07, "bilirubin": 0.07, "fio2": 0.1, "age": 0.03,
    "gcs": 0.1, "vent": 0.09, "intubated": 0.1, "dialysis": 0.12,
}


# --- missing values: probit, a site's habit, a shared panel, less often in the sicker -----------------------
class Absence(NamedTuple):
    """How a group of columns goes missing together."""

    columns: tuple[str, ...]
    rate: float
    habit_sd: float  # between hospitals
    panel: int  # what it goes missing with: 0 chemistry and blood count, 1 liver, 2 and up: alone
    tie: float  # correlation with the panel
    severity: float = 0.0  # probit units less for each standard deviation of risk


ABSENCE = {
    "urine": Absence(("urine",), 0.52, 1.1, 2, 0, 0),
    "wbc": Absence(("wbc",), 0.31, 0.35, 0, 0.92, 0.05),
    "temperature": Absence(("temperature",), 0.10, 1.0, 2, 0, -0.05),
    "sodium": Absence(("sodium",), 0.25, 0.35, 0, 0.97, 0.05),
    "hematocrit": Absence(("hematocrit",), 0.29, 0.35, 0, 0.92, 0.05),
    "creatinine": Absence(("creatinine",), 0.25, 0.35, 0, 0.97, 0.05),
    "bun": Absence(("bun",), 0.26, 0.35, 0, 0.97, 0.05),
    "glucose": Absence(("glucose",), 0.18, 0.35, 0, 0.92, 0.05),
    "albumin": Absence(("albumin",), 0.61, 0.4, 1, 0.97, 0.1),
    "bilirubin": Absence(("bilirubin",), 0.65, 0.45, 1, 0.97, 0.15),
    "abg": Absence(("ph", "pao2", "pco2", "fio2", "pf"), 0.82, 0.65, 2, 0, 0.3),
    "gcs": Absence(("eyes", "motor", "verbal", "gcs"), 0.04, 0.6, 2, 0, -0.1),
    "respiratoryrate": Absence(("respiratoryrate",), 0.022, 0.4, 2, 0),
    "heartrate": Absence(("heartrate",), 0.015, 0.3, 2, 0),
    "meanbp": Absence(("meanbp",), 0.023, 0.3, 2, 0),
}
UNIT_FAULTS = {"creatinine": 88.4, "bilirubin": 17.1, "glucose": 1 / 18}  # mg/dL to SI units
LABS = ("wbc", "sodium", "hematocrit", "creatinine", "bun", "glucose", "albumin", "bilirubin", "abg")
NO_APACHE_ROW = (0.045, 0.65)  # share of first unit stays without day-1 rows, habit sd (tables only)
UNSCORED = 0.19  # of stays with a day-1 row: no usable APACHE IVa prediction


# --- diagnoses ---------------------------------------------------------------------------------------------
class Diagnosis(NamedTuple):
    """A group of admission diagnoses; a unit type whose name contains `unit` has six times as many."""

    share: float
    effect: float  # on the log-odds of death, beside what the values carry
    factors: tuple[float, ...]  # shift of each factor
    unit: str


DIAGNOSES = {
    "sepsis": Diagnosis(0.12, 0.2, (0.3, 0.4, 0, 0.1, 0.3), "MICU"),
    "cardiac_arrest": Diagnosis(0.044, 0.6, (0, 0.2, 0.2, 1.0, 0.2), "Cardiac"),
    "ami": Diagnosis(0.03, -0.3, (-0.3, -0.2, 0, 0, 0), "C"),
    "chf": Diagnosis(0.047, 0.1, (0, 0, 0.2, 0, 0.4), "Cardiac"),
    "rhythm": Diagnosis(0.05, -0.4, (-0.2, 0.3, 0, -0.2, 0), "Cardiac"),
    "acs": Diagnosis(0.019, -0.7, (-0.4, -0.3, 0, -0.4, 0), "Cardiac"),
    "stroke": Diagnosis(0.04, 0.2, (-0.3, -0.2, 0, 0.2, -0.2), "Neuro"),
    "ich": Diagnosis(0.016, 0.4, (-0.2, -0.1, 0, 0.6, -0.2), "Neuro"),
    "seizure": Diagnosis(0.01, -0.7, (-0.2, 0, 0, 0.5, -0.2), "Neuro"),
    "coma": Diagnosis(0.009, 0, (0, 0, 0.1, 0.6, 0), "Neuro"),
    "pneumonia": Diagnosis(0.042, 0.2, (0.1, 0.3, 0.2, 0.4, 0), "MICU"),
    "copd": Diagnosis(0.033, -0.1, (0, 0.1, 0.9, 0.2, -0.2), "MICU"),
    "resp": Diagnosis(0.015, 0.2, (0, 0.2, 0.2, 0.7, 0), "MICU"),
    "pe": Diagnosis(0.009, 0, (0, 0.4, -0.2, 0, 0), "MICU"),
    "gi_bleed": Diagnosis(0.05, -0.4, (0.9, 0.1, 0, -0.3, 0), "MICU"),
    "dka": Diagnosis(0.049, -1.2, (-0.5, 0.4, -0.8, -0.4, 0.2), "MICU"),
    "overdose": Diagnosis(0.055, -1.2, (-0.4, 0, 0.1, 0.5, -0.4), "MICU"),
    "renal": Diagnosis(0.02, -0.2, (0.2, 0, 0, -0.3, 1.5), "MICU"),
    "trauma": Diagnosis(0.034, 0, (0.1, 0.1, 0, 0.2, -0.3), "SICU"),
    "cabg": Diagnosis(0.022, -0.6, (0.6, 0, 0, 0.6, 0), "S"),
    "valve": Diagnosis(0.012, -0.4, (0.6, 0, 0, 0.6, 0), "S"),
    "vascular": Diagnosis(0.022, -0.7, (0, -0.2, 0, -0.2, 0), "SICU"),
    "surgery": Diagnosis(0.048, -0.2, (0.2, 0, 0, 0, 0), "SICU"),
    "unknown": Diagnosis(0.059, -0.1, (0.0, 0.0, 0.0, 0.0, 0.0), ""),
    "other": Diagnosis(0.145, -0.1, (0.0, 0.0, 0.0, 0.0, 0.0), ""),
}
DIAGNOSIS_NAMES = {  # an APACHE admission diagnosis of the group as eICU spells it, and its code
    "sepsis": ("Sepsis, pulmonary", "SEPSISPULM"),
    "cardiac_arrest": ("Cardiac arrest (with or without respiratory arrest; for respiratory arrest see "
                       "Respiratory System)", "CARDARREST"),
    "ami": ("Infarction, acute myocardial (MI)", "AMI"),
    "chf": ("CHF, congestive heart failure", "CHF"),
    "rhythm": ("Rhythm disturbance (atrial, supraventricular)", "RHYTHATR"),
    "acs": ("Angina, unstable (angina interferes w/quality of life or meds are tolerated "
            "poorly)", "UNSTANGINA"),
    "stroke": ("CVA, cerebrovascular accident/stroke", "CVASTROKE"),
    "ich": ("Hemorrhage/hematoma, intracranial", "ICHEMORRHAGE"),
    "seizure": ("Seizures (primary-no structural brain disease)", "SEIZURES"),
    "coma": ("Coma/change in level of consciousness (for hepatic see GI, for diabetic see "
             "Endocrine)", "COMA"),
    "pneumonia": ("Pneumonia, bacterial", "PNEUMBACT"),
    "copd": ("Emphysema/bronchitis", "EMPHYSBRON"),
    "resp": ("ARDS-adult respiratory distress syndrome, non-cardiogenic pulmonary edema", "ARDS"),
    "pe": ("Embolus, pulmonary", "PULMEMBOL"),
    "gi_bleed": ("Bleeding, upper GI", "UGIBLEED"),
    "dka": ("Diabetic ketoacidosis", "DKA"),
    "overdose": ("Overdose, sedatives, hypnotics, antipsychotics, benzodiazepines", "ODSEDHYP"),
    "renal": ("Renal failure, acute", "RENALFAIL"),
    "trauma": ("Head only trauma", "HEADTRAUMA"),
    "cabg": ("CABG alone, coronary artery bypass grafting", "S-CABG"),
    "valve": ("Aortic valve replacement (isolated)", "S-VALVAO"),
    "vascular": ("Endarterectomy, carotid", "S-CAROTEND"),
    "surgery": ("Surgery for small intestinal obstruction", "S-GIOBSTRX"),
    "unknown": ("", ""),
    "other": ("Cardiovascular medical, other", "CVMEDOTHER"),
}
SURGICAL = ("cabg", "valve", "vascular", "surgery")  # elective in nine of ten

# --- features and outcome ----------------------------------------------------------------------------------
APS = ("urine", "wbc", "temperature", "respiratoryrate", "sodium", "heartrate", "meanbp", "ph", "hematocrit",
       "creatinine", "albumin", "pao2", "pco2", "bun", "glucose", "bilirubin", "fio2")
NORMAL = {  # midpoints of the APACHE scales
    "heartrate": 75, "meanbp": 90, "temperature": 38, "respiratoryrate": 19, "hematocrit": 45.5,
    "wbc": 11.5, "sodium": 140, "glucose": 130, "ph": 7.4, "pco2": 40,
}
LOGGED = frozenset({"urine", "wbc", "creatinine", "bun", "glucose", "bilirubin", "pao2", "pco2", "pf"})
FEATURES = (*APS, "pf", "eyes", "motor", "verbal", "gcs", "gcs_unable", "intubated", "vent", "dialysis",
            "age", "female", *(f"dev_{name}" for name in NORMAL), "age2")
INDICATORS = ("urine", "wbc", "temperature", "sodium", "hematocrit", "creatinine", "bun", "glucose",
              "albumin", "bilirubin", "abg", "gcs")

SIGNAL = {  # log-odds of death for one standard deviation
    "age": 0.55, "age2": 0.1, "urine": -0.1, "respiratoryrate": 0.2, "dev_respiratoryrate": 0.15,
    "sodium": -0.1, "heartrate": 0.15, "dev_heartrate": 0.35, "meanbp": -0.2, "dev_meanbp": 0.25,
    "dev_temperature": 0.25, "ph": -0.1, "dev_ph": 0.1, "albumin": -0.2, "bun": 0.3, "creatinine": 0.1,
    "bilirubin": 0.15, "gcs": -0.3, "eyes": -0.15, "motor": -0.2, "verbal": -0.2, "gcs_unable": 0.15,
    "vent": 0.2, "dialysis": -0.1, "pf": -0.1, "pao2": -0.05, "dev_hematocrit": 0.1, "dev_wbc": 0.15,
}
SLOPE_TERMS = 10  # slopes that differ between hospitals: those with the largest coefficients
CLIP = 4.0  # standard deviations, in the outcome model and in prepared features
MEAN_RISK = -3.4  # mean log-odds of death, intercept included
RISK_SD = 1.6  # of the linear predictor, for everything that depends on severity
REFERENCE = (-0.2, 0.8, 0.6)  # APACHE-IVa-like logit: offset, slope and error on the log-odds of death

STANDARD = {  # of the features, log1p taken of those in LOGGED
    "urine": (6.99, 1.3), "wbc": (2.44, 0.48), "temperature": (36.4, 0.82), "respiratoryrate": (27.1, 14.0),
    "sodium": (138.0, 5.6), "heartrate": (102.0, 31.0), "meanbp": (86.5, 40.0), "ph": (7.39, 0.094),
    "hematocrit": (34.0, 6.9), "creatinine": (0.859, 0.41), "albumin": (2.91, 0.72), "pao2": (4.69, 0.54),
    "pco2": (3.73, 0.28), "bun": (3.1, 0.65), "glucose": (4.96, 0.52), "bilirubin": (0.643, 0.45),
    "fio2": (57.2, 23.0), "pf": (5.33, 0.62), "eyes": (3.55, 0.89), "motor": (5.52, 1.2),
    "verbal": (4.1, 1.5), "gcs": (13.2, 3.1), "gcs_unable": (0.0113, 0.11), "intubated": (0.132, 0.34),
    "vent": (0.225, 0.42), "dialysis": (0.0365, 0.19), "age": (63.6, 16.0), "female": (0.464, 0.5),
    "dev_heartrate": (35.9, 20.0), "dev_meanbp": (37.3, 16.0), "dev_temperature": (1.59, 0.73),
    "dev_respiratoryrate": (13.8, 9.2), "dev_hematocrit": (11.8, 6.4), "dev_wbc": (5.0, 4.9),
    "dev_sodium": (4.37, 4.0), "dev_glucose": (67.8, 89.0), "dev_ph": (0.0745, 0.058),
    "dev_pco2": (9.6, 8.6), "age2": (2.72, 3.2),
}
