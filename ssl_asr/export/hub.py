"""Uploads an exported folder to the Hugging Face Hub."""

from pathlib import Path
from typing import Any

from ssl_asr.errors import ConfigError


class HubTarget:
    """A repository of the Hub that a folder is uploaded to. Making one checks everything that can be checked before.

    Args:
        name: ORGANIZATION/NAME.
        private: Whether a new repository is private.
        overwrite: Whether an existing repository may be changed.

    Raises:
        ConfigError: There is no token, the Hub cannot be reached, or the repository exists.
    """

    def __init__(self, name: str, *, private: bool, overwrite: bool) -> None:
        from huggingface_hub import HfApi, get_token

        self.name, self._private = name, private
        self._api: Any = HfApi()
        if get_token() is None:
            raise ConfigError("push", "needs a token of the Hugging Face Hub", "log in with: hf auth login")
        exists = self._asked()
        if exists and not overwrite:
            what = f"https://huggingface.co/{name} exists"
            raise ConfigError("push", what, "write overwrite=true to add a commit to it, or give another name")

    def _asked(self) -> bool:
        """Whether the repository exists. Also checks the token."""
        from huggingface_hub.errors import HfHubHTTPError

        try:
            self._api.whoami()
            return bool(self._api.repo_exists(self.name))
        except HfHubHTTPError as error:
            what = f"the Hugging Face Hub refuses it: {_first_line(error)}"
            raise ConfigError("push", what, "log in with a token that may write: hf auth login") from None
        except Exception as error:  # the library raises errors of several HTTP clients
            what = f"the Hugging Face Hub cannot be reached ({type(error).__name__})"
            raise ConfigError("push", what, "check the network connection, or leave push out") from None

    def upload(self, folder: Path) -> str:
        """Upload a folder in one commit.

        Returns:
            The address of the repository.

        Raises:
            ConfigError: The upload fails. The folder is complete on this machine.
        """
        try:
            self._api.create_repo(self.name, private=self._private, exist_ok=True)
            self._api.upload_folder(repo_id=self.name, folder_path=folder, commit_message="Upload an exported model")
        except Exception as error:  # as above
            what = f"the upload failed: {_first_line(error)}. {folder} is complete"
            raise ConfigError("push", what, f"upload it with: hf upload {self.name} {folder}") from None
        return f"https://huggingface.co/{self.name}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
