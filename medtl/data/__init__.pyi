from .cases.collect import collect_cases as collect_cases
from .cases.table import Case as Case, CaseTable as CaseTable
from .cohort import Cohort as Cohort
from .tensors.batch import Batch as Batch, collate as collate
from .tensors.cache import VolumeCache as VolumeCache
from .tensors.dataset import CaseDataset as CaseDataset
from .tensors.preprocess import suggest_preprocess as suggest_preprocess
from .tensors.spec import Preprocess as Preprocess
