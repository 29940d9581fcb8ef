"""The numbers of an experiment's tables: heading, which way is better, and what each one is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Column:
    """One number of an SAE."""

    heading: str
    better: str
    """`↓`, `↑`, or empty where neither is."""
    text: str
    digits: int = 3


COLUMNS: Final[Mapping[str, Column]] = {
    "fvu": Column("FVU", "↓", "fraction of variance unexplained, held-out rows", 4),
    "l0": Column("L0", "", "latents on in a row, held-out rows", 2),
    "dead": Column("dead", "↓", "share of latents that are off in all held-out rows scored by the trainer"),
    "absorption": Column("absorption", "↓", "planted: how much more often a parent's latent is silent with a child on"),
    "all_f1": Column("F1", "↑", "planted: F1 of each truth's best latent, mean"),
    "mcs": Column("MCS", "↑", "planted: largest cosine of each truth with a decoder row, mean"),
    "slow_f1": Column("slow F1", "↑", "planted: F1 of each topic's best latent, mean"),
    "flicker": Column("flicker", "↓", "planted: P(latent off | topic still on, latent was on)"),
    "left_signal": Column("left", "↓", "planted: forget signal left in the reconstruction without the forget latents"),
    "are": Column("ARE_rec", "↑", "fall of absorption a unit of FVU lost (at least 0.001), where L0 agrees to 2 %", 1),
    "mmc": Column("max cos", "↓", "largest cosine of each live decoder row with another, mean"),
    "c_dec": Column("mean |cos|", "↓", "over all pairs of live decoder rows", 4),
    "duplicated": Column("duplicates", "↓", "share of live latents with another at a cosine above 0.9"),
    "frame": Column("frame", "↓", "excess of the frame potential over a tight frame's; blind to duplicates"),
    "kappa": Column("κ rows", "↓", "√(λ₁/λ_r) of the live decoder rows, r at 95 % of the energy", 2),
    "effective_rank": Column("eff. rank", "↑", "exp of the entropy of the spectrum of the live decoder rows", 1),
    "active_kappa": Column("κ active", "↓", "median condition number of the rows active together, 256 samples"),
    "rho_1": Column("ρ(1)", "", "auto-correlation of codes one position on, weighted by firing rate"),
    "rho_1_shuffled": Column("ρ(1) shuffled", "", "the same of rows in random order: chance"),
    "rho_1_median": Column("median ρ(1)", "", "the same, median over latents"),
    "rho_1_high": Column("ρ(1) > ½", "", "share of latents with an auto-correlation above one half"),
    "half_life": Column("half-life", "", "median over latents of the positions until ρ falls to 1/2", 2),
    "stays_on": Column("stays on", "", "P(on next | on) − P(on), weighted by firing rate"),
    "smoothness": Column("S", "", "steepest change of a latent over that of x; says nothing without the next", 4),
    "latents_on": Column("on/seq", "", "latents that are on somewhere in a sequence", 0),
    "position_invariance": Column("1 − η²", "", "share of a latent's variance that its position does not explain", 4),
    "slow_l0": Column("slow L0", "", "latents of the slow set on in a row, at the end of training", 2),
    "redundant": Column("redundant", "↓", "share of the 2048 most active latents in a pair with R > .9 and cos > .5"),
    "mean_correlation": Column("mean |R|", "↓", "Pearson correlation of codes, over all pairs", 4),
    "l0_slow": Column("slow", "", "share of L0 by latents of slow clusters"),
    "l0_token": Column("token", "", "share of L0 by latents of one-token clusters"),
    "l0_position": Column("position", "", "share of L0 by latents of position clusters"),
    "l0_dense": Column("dense", "", "share of L0 by latents that fire on a tenth of the rows or more"),
    "silhouette": Column("silhouette", "", "of the clusters of traits"),
    "cohesion": Column("cohesion", "", "mean cosine of a latent with those that it is on together with"),
    "clustering_excess": Column("triangles", "↓", "clustering coefficient of decoder rows less chance, ten densities"),
    "meta_explained": Column("meta", "↓", "variance of decoder rows that a Meta-SAE of F/4 latents, k 4, explains"),
    "leakage": Column("leakage", "↓", "share of first-domain latents in the activation on second-domain rows"),
    "auc": Column("AUC", "↑", "first- against second-domain rows by Σ s_i over active latents"),
    "residual": Column("residual", "↓", "difference of the domains' means left without the first group"),
    "kept": Column("kept", "", "the same with it"),
    "damage": Column("damage", "↓", "rise of the second domain's FVU without the first group", 4),
    "affinity": Column("affinity", "↓", "overlap of the groups' subspaces, 0 orthogonal, 1 contained"),
    "cross_cosine": Column("cross cos", "↓", "largest cosine of each first-group row with one of the second, mean"),
    "cross_rms": Column("cross RMS", "↓", "root mean square of the groups' cosines"),
    "jaccard": Column("J trained", "", "Jaccard index of the last two selections of pairs in training"),
    "weight": Column("λ end", "", "weight of the term at the end of training"),
    "violation": Column("O end", "↓", "the term's own value at the end of training", 4),
    "pareto": Column("Pareto", "", "1 where no arm (at its baseline's L0) beats its mean FVU or ρ(1) at no loss", 0),
    "gradient_share": Column("grad share", "", "share of the gradient's norm that the penalty has, end of training"),
}
