"""What the Hub's client fails with, as one sentence that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from phibuild.errors import Problem, SourceError

UNREACHABLE = "the Hub cannot be reached"
"""How the error begins where there is no network, or none is to be used."""


@contextmanager
def explained(repo: str, revision: str | None) -> Iterator[None]:
    """Raise SourceError for the errors of the Hub's client, and of the network below it."""
    from huggingface_hub import errors

    name = f"{repo}@{revision}" if revision else repo
    try:
        yield
    except errors.GatedRepoError as error:
        what, remedy = "access to this model is gated", "accept its terms, then: hf auth login"
        raise SourceError(Problem(what, name, remedy)) from error
    except errors.RevisionNotFoundError as error:
        raise SourceError(Problem("no such revision on the Hub", name)) from error
    except errors.RepositoryNotFoundError as error:
        what, remedy = "no such model on the Hub, or it is private", "check the name; hf auth login"
        raise SourceError(Problem(what, name, remedy)) from error
    except errors.RemoteEntryNotFoundError as error:
        what, remedy = "the repository has no config.json", "is this a checkpoint's repository?"
        raise SourceError(Problem(what, name, remedy)) from error
    except Exception as error:
        problem = _failure(name, error)
        if problem is None:
            raise
        raise SourceError(problem) from error


def _failure(name: str, error: Exception) -> Problem | None:
    """Say why the Hub client failed; None for an error that is not the Hub's nor the network's."""
    from huggingface_hub import errors

    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)
    for link in chain:
        match link:
            case errors.HFValidationError():
                remedy = "org/name or org/name@revision"
                return Problem("not a name that the Hub allows", name, remedy)
            case errors.HfHubHTTPError(response=response):
                what = f"the Hub answered {response.status_code} {response.reason_phrase}"
                return Problem(what, name, "try again later, or check HF_ENDPOINT")
    network = (ConnectionError, TimeoutError, errors.LocalEntryNotFoundError)
    match error:
        case OSError(strerror=reason):
            if reason and not isinstance(error, network):
                return Problem(f"cannot be put into the Hub's cache: {reason}", name)
        # The Hub client lets its HTTP library's errors through, and changed that library once.
        case _ if not type(error).__module__.startswith("httpx"):
            return None
    reason = " ".join(str(chain[-1]).split())[:160]
    return Problem(
        f"{UNREACHABLE} and the model is not in its cache ({reason})",
        name,
        "check the network (HF_ENDPOINT, proxy), or give a folder: model=./my-phi",
    )
