"""Image -> Predictions. Knows no stage, no loss and no data set."""
