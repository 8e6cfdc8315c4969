"""LA-SR trained and judged with what packages carry: variants, ablations, tables."""
