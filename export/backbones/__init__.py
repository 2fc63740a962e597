"""Networks whose inner layers serve as features, with torchvision's names."""
