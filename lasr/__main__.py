"""LA-SR: super-resolution networks for real pictures, trained on ordinary photographs."""

import sys

import lasr
from lasr.cli import Group, Lazy

SECTIONS = {
    "Build a training set": [
        Lazy("build", "pipeline.run", "Build a manifest of far and near patches from photographs"),
        Lazy("query", "pipeline.query.__main__", "Ask a manifest in SQL; save patches to train on"),
        Lazy("report", "pipeline.report.__main__", "Write a page that shows a manifest"),
        Lazy("picture", "pipeline.report.picture", "Draw the patches of one photograph"),
        Lazy("finetune-set", "pipeline.finetune", "Make a manifest of given pictures to fine-tune"),
        Lazy("depth", "pipeline.steps.depth", "Estimate distance maps of pictures"),
        Lazy("patches", "pipeline.steps.patches", "Draw far and near patches into pictures"),
        Lazy("caption", "pipeline.steps.caption", "Find the words of pictures or their patches"),
        Lazy("serve", "pipeline.flows.__main__", "Serve the Prefect deployment build-patches"),
    ],
    "Train": [
        Lazy("train", "trainer.run", "Train a x4 network on a manifest"),
        Lazy("pretrain", "trainer.pretrain.__main__", "Train a start for it on any photographs"),
        Lazy("degradations", "trainer.data.degradation", "Draw degraded patches, to look at them"),
        Lazy("features", "trainer.features.__main__", "Draw how the encoders see patches"),
    ],
    "Use and judge": [
        Lazy("upscale", "trainer.upscale.__main__", "Enlarge pictures with a trained network"),
        Lazy("ui", "lasr.ui.__main__", "Serve a page to upscale and to look at a training set"),
        Lazy("export", "trainer.export", "Write a trained network as ONNX, NCNN or .pth"),
        Lazy("evaluate", "trainer.evaluate.__main__", "Score networks and other methods"),
        Lazy("compare", "trainer.evaluate.compare", "Draw far patches, enlarged by networks"),
        Lazy("sidebyside", "trainer.evaluate.sidebyside", "Draw crops of methods side by side"),
        Lazy("curve", "trainer.evaluate.curve", "Draw scores against training steps"),
    ],
    "Models and machine": [
        Lazy("weights", "lasr.weights.__main__", "List, download, verify and export model weights"),
        Lazy("metrics", "trainer.evaluate.metrics", "List metrics and download their weights"),
        Lazy("doctor", "lasr.doctor.__main__", "Check this machine before a long run"),
        Lazy("completion", "lasr.completion", "Print a completion script for bash, zsh or fish"),
    ],
}

main = Group("lasr", about=__doc__, sections=SECTIONS, version=lambda: f"lasr {lasr.__version__}")

if __name__ == "__main__":
    sys.exit(main())
