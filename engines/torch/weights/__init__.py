"""The replicas' weights: brought from the host copy to the device."""
