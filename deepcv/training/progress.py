"""What a person who waits for a training sees."""

from ignite.engine import Engine, Events

from deepcv.training.history import History

_STEPS = 100  # redraws of the bar per epoch, at most


def show_progress(trainer: Engine, history: History, epochs: int, epoch_length: int, done: int) -> None:
    """Draw one bar over all iterations on stderr, with the time left and the last epoch's val accuracy."""
    from tqdm import tqdm  # a GPU machine may have torch and ignite alone

    every = max(1, epoch_length // _STEPS)
    bar = tqdm(total=epochs * epoch_length, initial=done, unit="step", mininterval=0.5, dynamic_ncols=True)

    def advance(engine: Engine) -> None:
        bar.set_description(f"epoch {engine.state.epoch}/{epochs}", refresh=False)
        if history.records:
            bar.set_postfix_str(f"val accuracy {history.records[-1].val_accuracy:.4f}", refresh=False)
        bar.update(engine.state.iteration - bar.n)

    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=every), advance)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, advance)
    trainer.add_event_handler(Events.COMPLETED, lambda _engine: bar.close())
