"""Train a PSNR-oriented x4 network on photographs, to start `lasr train` from."""
