from .advice import Advice as Advice, advise as advise, skill as skill
from .candidates import Pretrained as Pretrained, parse_candidates as parse_candidates
from .choice import EncoderRanking as EncoderRanking, check_score as check_score, rank as rank
from .distance import Distance as Distance, domain_distance as domain_distance
from .export import save_features as save_features
from .features import (
    FeatureDataset as FeatureDataset,
    check_views as check_views,
    extract_depths as extract_depths,
    extract_features as extract_features,
    feature_table as feature_table,
    knn_logits as knn_logits,
)
from .locations import (
    Locations as Locations,
    find_locations as find_locations,
    location_features as location_features,
)
from .ranking import Candidate as Candidate, Ranking as Ranking, rank_candidates as rank_candidates
