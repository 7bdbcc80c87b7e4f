"""Patient-level differential privacy: gradients, mechanism, accounting, ledger, policy. Knows no NVFlare and no CT."""
