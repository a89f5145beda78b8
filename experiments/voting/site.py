"""What the pages stand on, and who is asking."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import Request
from sqlalchemy import Engine

from experiments.voting import store
from experiments.voting.body import RefusedError, is_identifier
from experiments.voting.database import reading
from experiments.voting.store import LinkedRater
from experiments.voting.survey import Survey, list_surveys
from experiments.voting.texts import Texts


@dataclass
class Site:
    """What the pages stand on. `unnoted`: first showings that the store had no room for."""

    engine: Engine
    folder: Path
    owner_token: str
    texts: Texts
    unnoted: set[tuple[int, str]] = field(default_factory=set)
    noted: set[tuple[int, str]] = field(default_factory=set)
    surveys: dict[int, Survey] = field(default_factory=dict)

    def survey(self, number: int) -> Survey:
        """A survey never changes, so it is read once."""
        if number not in self.surveys:
            with reading(self.engine) as connection:
                self.surveys.update({survey.id: survey for survey in list_surveys(connection)})
        if number not in self.surveys:
            raise RefusedError(404, "survey", "there is no such survey")
        return self.surveys[number]

    def rater(self, link: str) -> LinkedRater:
        """Raises RefusedError for a link that nobody was given, and one that is closed."""
        found = store.find_rater(self.engine, link) if is_identifier(link) else None
        if found is None:
            raise RefusedError(404, "link", "there is no such link")
        if found.closed:
            raise RefusedError(410, "closed", "this link is closed")
        return found

    def is_owner(self, request: Request) -> bool:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(token.strip().encode("utf-8", "replace"), self.owner_token.encode())
        return same and scheme.lower() == "bearer"
