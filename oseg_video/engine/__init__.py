"""How a guided step runs: denoiser calls, the branches behind them, hooks, reports. Knows no job."""
