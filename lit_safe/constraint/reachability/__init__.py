"""Which limits the objective's optimum can meet, estimated before training from scored samples of the reference."""
