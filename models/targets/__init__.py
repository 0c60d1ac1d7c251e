"""Frozen networks and filters that say what an encoder is to predict.

frozen.py     weights from a local file, evaluation mode for good, nothing of it in checkpoints
cached.py     what a frozen network said, on disk: by seed, epoch and sample
dalle.py      DALL-E's image encoder: 8,192 visual words of 8 x 8 pixels (BEiT, CAE)
vqkd.py       BEiT v2's tokenizer, and the quantizer it is trained with
clip.py       CLIP's vision tower: features and attention (MILAN, EVA, the teacher of VQ-KD)
hog_picture.py  histograms of gradients as pictures (MaskFeat)
lowpass.py    images without their high frequencies (PixMIM)
"""
