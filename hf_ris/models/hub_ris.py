"""The way to the Hub: what is saved or pushed is whole, its card included, and arrives in one commit or not at all."""

from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitInfo, HfApi, ModelCard


_UPLOAD_ARGUMENTS = ("repo_id", "private", "token", "revision", "create_pr", "commit_message", "commit_description")

_CARD = """---
library_name: transformers
license: apache-2.0
pipeline_tag: image-segmentation
tags:
- referring-image-segmentation
- {architecture}
---

# {architecture}: referring image segmentation

An image and an expression in, the mask of what the expression refers to out. `modeling_{architecture}.py` in this
repository names in its head the paper, the original repository and its licence, and every deviation. It needs
transformers, torch, torchvision, timm and open_clip_torch.

```python
from transformers import pipeline

pipe = pipeline("referring-image-segmentation", model="{name}", trust_remote_code=True)
for result in pipe("photo.jpg", ["the man in red", "left dog"]):
    result["mask"].save(result["text"] + ".png")  # black and white, of the photo's size
```

## Measured

This card was written when the model was saved. It knows no measured number, nor what the weights were trained on.

## Licence

The code: Apache-2.0. Weights that were published elsewhere keep their authors' licence.
"""


_OF_VIDEO = (  # what the card of a video architecture says instead
    ("referring-image-segmentation", "referring-video-segmentation"),
    ("referring image segmentation", "referring video segmentation"),
    ("An image and an expression in, the mask of what", "A video and an expression in, the masks of what"),
    (
        "transformers, torch, torchvision, timm and open_clip_torch",
        "transformers, torch, torchvision, timm, open_clip_torch and av",
    ),
    (
        """for result in pipe("photo.jpg", ["the man in red", "left dog"]):
    result["mask"].save(result["text"] + ".png")  # black and white, of the photo's size""",
        """for result in pipe("clip.mp4", ["the man in red", "the dog that runs to the left"], overlay="answers.mp4"):
    result["masks"][0].save(result["text"] + ".png")  # of the first frame, black and white, of its size""",
    ),
)


def card(architecture: str, name: str) -> str:
    """The card of a model of which nothing but its architecture is known; `name` is its repository or folder."""
    text = _CARD
    for of_images, of_videos in _OF_VIDEO if architecture.endswith("_video") else ():
        text = text.replace(of_images, of_videos)
    return text.format(architecture=architecture, name=name)


def upload(
    folder: str | Path,
    repo_id: str,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
    replace_card: bool = False,
) -> CommitInfo:
    """Make the repository if it is not there and bring a folder's files into it, in one commit.

    private: of a new repository. revision: a branch, made if it is not there. replace_card: else a README.md that the
        repository has stays.

    Raises:
        HfHubHTTPError: what the Hub refuses; the repository then stays as it was.
    """
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not revision.startswith("refs/pr/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    keeps_card = not replace_card and api.file_exists(repo_id, "README.md", revision=revision)
    return api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        revision=revision,
        create_pr=create_pr,
        commit_message=commit_message or "Upload with hf_ris",
        commit_description=commit_description,
        ignore_patterns=["README.md"] if keeps_card else None,
    )


class HubMixin:
    """`save_pretrained` and `push_to_hub` of models, processors and pipelines; stands before transformers' class."""

    architecture: str  # the model type, as `lts`: a property of each

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """As in transformers; adds a card where the folder has none."""
        target = {name: kwargs.pop(name) for name in _UPLOAD_ARGUMENTS if name in kwargs} if push_to_hub else {}
        saved = super().save_pretrained(save_directory, **kwargs)
        repo_id = target.pop("repo_id", Path(save_directory).name)
        path = Path(save_directory) / "README.md"
        if kwargs.get("is_main_process", True) and not path.exists():
            path.write_text(card(self.architecture, repo_id if push_to_hub else "."), encoding="utf-8")
        if push_to_hub:
            upload(save_directory, repo_id, **target)
        return saved

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str = "50GB",
        tags: list[str] | None = None,
    ) -> CommitInfo:
        """As in transformers; the card is ours, unless the repository has one."""
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, max_shard_size=max_shard_size)
            readme = ModelCard(card(self.architecture, repo_id))
            readme.data.tags += [tag for tag in tags or () if tag not in readme.data.tags]
            readme.save(Path(folder) / "README.md")
            return upload(folder, repo_id, private, token, revision, create_pr, commit_message, commit_description)
