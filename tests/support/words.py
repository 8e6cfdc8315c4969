"""A small dictionary: each word is one token of CLIP's, so that no caption of 24 is cut."""

WORDS = [
    "sky", "sea", "sun", "cat", "dog", "bird", "tree", "leaf", "rock", "sand", "snow", "rain",
    "wood", "iron", "gold", "red", "blue", "green", "black", "white", "door", "wall", "road",
    "boat", "car", "bus", "hand", "face", "eye", "hair",
]  # fmt: skip
