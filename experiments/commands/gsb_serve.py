"""`nava gsb serve`: the pages on which people vote."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from experiments.voting.survey import SurveyConfig

Sets = Annotated[
    tuple[str, ...],
    tyro.conf.Positional,
    tyro.conf.arg(
        metavar="[MODEL=]FOLDER", help="clips of `nava generate`, or a store of `nava rollout --mp4`"
    ),
]
VotesPlace = Annotated[
    str, tyro.conf.arg(metavar="PLACE", help="file of SQLite, or postgresql://USER@HOST/NAME")
]
Axes = Annotated[tuple[str, ...], tyro.conf.arg(help="the questions: overall, sync, voice, picture")]
PerRater = Annotated[int, tyro.conf.arg(help="pairs that a rater sees, without repeats and checks")]
NumCases = Annotated[int, tyro.conf.arg(help="diverse prompts that are asked about; 0 = all")]
Repeats = Annotated[float, tyro.conf.arg(help="share of pairs shown again with swapped sides")]
Attention = Annotated[float, tyro.conf.arg(help="share of checks: a clip against its spoilt copy")]
SharedCases = Annotated[float, tyro.conf.arg(help="share of pairs that every rater sees, for agreement")]
Simulated = Annotated[bool, tyro.conf.arg(help="a program votes, no people: every vote says so")]
OwnerTokenFile = Annotated[
    Path | None,
    tyro.conf.arg(
        help="the owner's token; else $NAVA_API_TOKEN, else FOLDER/owner.token, made where missing"
    ),
]
ClipsFolder = Annotated[
    Path | None,
    tyro.conf.arg(help="where the clips as shown lie; else beside a file, as votes.files for votes.db"),
]
TextFolder = Annotated[Path | None, tyro.conf.arg(help="folder of further languages, CODE.json each")]


def serve(
    sets: Sets = (),
    /,
    *,
    votes: VotesPlace,
    survey: str = "survey",
    title: str = "",
    ours: str | None = None,
    axes: Axes = ("overall", "sync", "voice", "picture"),
    cases: NumCases = 0,
    per_rater: PerRater = 30,
    repeats: Repeats = 0.05,
    attention: Attention = 0.05,
    shared: SharedCases = 0.2,
    seed: int = 0,
    links: Annotated[int, tyro.conf.arg(help="make so many raters' links and print them, once")] = 0,
    simulated: Simulated = False,
    host: str = "127.0.0.1",
    port: int = 8124,
    folder: ClipsFolder = None,
    token_file: OwnerTokenFile = None,
    texts: TextFolder = None,
) -> None:
    """Serve the pages of blind Good/Same/Bad votes until Ctrl-C: one for raters, one for the owner.

    Sets of clips of the same prompts make a survey, which is stored in --votes and goes on when the command
    is given again; without sets the surveys of --votes are served. Sides, orders, repeats and attention
    checks follow from --seed; clips are shown at one size, length and loudness (-23 LUFS), without names or
    metadata. Each rater needs a personal link: --links N, or the owner's page. `nava gsb export --survey
    PLACE` writes the votes. The server has no TLS: put a proxy with TLS before it for people elsewhere.
    """
    from experiments.voting.database import open_database, shown_place
    from experiments.voting.server import bound_socket, default_folder, is_loopback, run_server
    from experiments.voting.site import Site
    from experiments.voting.texts import read_texts
    from orchestration.service.token import token_from

    if not 0 <= port < 65536:
        raise ValueError(f"--port {port}: expected 0 to 65535")
    words, place = read_texts(texts), folder or default_folder(votes)
    _check_apart(votes, place)
    config = {"axes": axes, "seed": seed, "per_rater": per_rater, "title": title, "simulated": simulated}
    shares = {"repeats": repeats, "attention": attention, "shared": shared}
    made = _survey_of(sets, ours, cases, config, shares) if sets else None
    with bound_socket(host, port) as listener:
        engine = open_database(votes, make=bool(sets))
        name = _prepare(engine, survey, made, place) if made else survey
        token, word = token_from(token_file, place / "owner.token")
        where = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        _print_links(engine, name, links, where)
        if not is_loopback(host):
            print(f"warning: {where} is plain HTTP; put a proxy with TLS before it", file=sys.stderr)
        print(f"votes of {shown_place(votes)} at {where}/owner (token: {word}); Ctrl-C ends it", flush=True)
        run_server(Site(engine, place, token, words), listener)


def _check_apart(votes: str, place: Path) -> None:
    """Raises ValueError for votes or clips that DVC would delete before it runs a stage again."""
    from experiments.runs.provenance import maker_of
    from experiments.voting.database import is_url

    for option, path in {"--votes": None if is_url(votes) else Path(votes), "--folder": place}.items():
        if path is not None and (stage := maker_of(path, Path())):
            raise ValueError(
                f"{option} {path}: in the output of stage {stage}, which `dvc repro` deletes; give a place "
                "apart, as surveys/votes.db (and move what is there)"
            )


def _survey_of(
    sets: tuple[str, ...], ours: str | None, count: int, values: dict, shares: dict
) -> tuple[SurveyConfig, list]:
    """Settings and cases of the sets, before anything is opened or made."""
    from experiments.commands.gsb import index_of
    from experiments.voting.plan import Shares
    from experiments.voting.sets import read_cases
    from experiments.voting.survey import SurveyConfig, diverse
    from finetune.gsb.names import folded_name

    found = read_cases([index_of(text, "") for text in sets])
    models = tuple(found[0].clips)
    default = "ours" if "ours" in models else models[0]
    chosen = folded_name(ours) if ours else default
    config = SurveyConfig(models=models, ours=chosen, shares=Shares(**shares), **values)
    return config, diverse(found, count, config.seed)


def _prepare(engine: Engine, name: str, made: tuple[SurveyConfig, list], place: Path) -> str:
    from experiments.voting.survey import add_survey

    config, cases = made
    survey, new = add_survey(engine, name, config, cases, place)
    said = "made ready" if new else "goes on"
    print(f"survey {survey.name}: {said}, {len(cases)} cases of {', '.join(config.models)}", flush=True)
    return survey.name


def _print_links(engine: Engine, name: str, count: int, where: str) -> None:
    from experiments.voting.owner import MAX_LINKS
    from experiments.voting.store import make_links

    if not 0 <= count <= MAX_LINKS:
        raise ValueError(f"--links {count}: expected 0 to {MAX_LINKS}")
    for rater, secret in make_links(engine, name, count):
        print(f"{rater}\t{where}/r/{secret}", flush=True)
