"""Real model servers on 127.0.0.1, without a GPU. Not part of `make test`: `make test-servers` runs these tests."""
