"""Answers to the claims of the retpoline debate, measured on this host: C1, C2 and C5 (``lzero claims``)."""

from __future__ import annotations

from lzero.dispatch.claims.answers import CLAIMS, EFFORT, QUICK, Answer, Comparison, answer_claims

__all__ = ["CLAIMS", "EFFORT", "QUICK", "Answer", "Comparison", "answer_claims"]
