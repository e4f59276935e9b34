"""Every model server of the lab as a policy's profile: taken by the API, and as fast as the server is."""

from __future__ import annotations

import pytest
import yaml

from bandkeeper.api.v1alpha1 import Profile, Spec
from bandkeeper.api.validation import validate
from bandkeeper.cli.main import main
from bandkeeper.cli.profile import profile_of
from bandkeeper.decide.policy import Batching, resolve
from bandkeeper.lab.server import ContinuousServer, load, presets
from tests.documents import a_policy

PROMPT, OUTPUT = 800.0, 300.0


@pytest.mark.parametrize("preset", presets())
def test_a_preset_is_a_profile(preset: str) -> None:
    server = load(preset)
    document = a_policy(profile=profile_of(server, PROMPT, OUTPUT))
    spec = validate(document)
    assert isinstance(spec, Spec), spec
    batching = Batching.CONTINUOUS if isinstance(server, ContinuousServer) else Batching.DYNAMIC
    profile = resolve(spec, batching=batching, default_capacity=server.batch_max).profile
    assert profile is not None
    if isinstance(server, ContinuousServer):
        context = PROMPT + OUTPUT / 2
        for batch in (1, 8, 64):
            assert profile.alpha_s + (profile.beta_s or 0.0) * batch == pytest.approx(
                server.step_s(batch, batch * context), rel=1e-3
            )
        assert (profile.delta_s or 0.0) * PROMPT == pytest.approx(server.step_s(0, 0, PROMPT), rel=1e-3)
        assert profile.kv_tokens == server.kv_tokens
    else:
        for size, seconds in profile.batches:
            assert seconds == pytest.approx(server.times_s[round(size)], rel=1e-3)


def test_it_is_printed_as_a_policy_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "llama-3.1-8b-h100", "--tokens", "800:300"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("# ")
    assert Profile.model_validate(yaml.safe_load(printed)["profile"]).kv_tokens


def test_an_unknown_server_lists_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "abacus"]) == 2
    assert "resnet50-a100" in capsys.readouterr().err


@pytest.mark.parametrize("tokens", ["800", "800:", "0:10", "a:b", "nan:1"])
def test_lengths_that_cannot_be_meant(tokens: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["profile", "reference", "--tokens", tokens])
    assert "such as 1155:211" in capsys.readouterr().err
