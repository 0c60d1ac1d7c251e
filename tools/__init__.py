"""What people look through.

samples.py         what an algorithm sees of the first samples of an epoch, and what was drawn for it
browse.py          a contact sheet and a page of them; browse_page.py: the page
report.py          a run as a page; report_page.py: the page     compare.py   runs side by side
run_record.py      what a run directory says of its run         run_figures.py   its figures and charts
page.py            the HTML skeleton that all pages share
doctor.py          where the time goes; doctor_measure.py measures, doctor_advice.py concludes,
                   doctor_packages.py knows what is installed
parity.py          how far every way of making views is from the definition
plots.py           sheets of samples and of rows of images
run_logs.py        logs of headrace, MMEngine and MMCV   timing.py   their step times
curves.py          figures of runs over time             charts.py   how curves are drawn
columns.py         tables for a terminal
demo.py            the whole journey on a small set
demo_images.py     the set: textured shapes on cluttered backgrounds
thumbnails.py      a user's own images made small for the demo
tsne.py            features in two dimensions
attention.py       where an encoder looks        pca.py   what its features tell apart     maps.py   both
reconstruct.py     what a masked autoencoder restores
shape_bias.py      shape or texture, of cue-conflict images
weights/           how other code bases name and lay out weights, as data
import_weights.py  foreign checkpoints in; export.py, targets/, onnx_file.py: encoders out
import_config.py   OpenMMLab's configurations as recipes; static_config.py reads them, mmselfsup_config.py says them,
                   mmselfsup_legacy.py puts 0.x's in the words of 1.x
models_api.py      list_models, get_model, and the table of models
predict.py         classes of photos             params.py   how large a model is, part by part
flops.py           multiply-adds of an encoder's parts
"""
