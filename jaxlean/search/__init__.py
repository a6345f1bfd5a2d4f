"""Many runs chosen by Optuna: which settings are tried, how trials share a program, what the study found."""
