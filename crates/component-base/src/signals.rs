//! Ending on SIGTERM and SIGINT.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Says when to stop. Cheap to clone; every part of a component holds one.
#[derive(Debug, Clone)]
pub struct Stop(watch::Receiver<bool>);

/// The other end of [`Stop`].
#[derive(Debug, Clone)]
pub struct Stopper(std::sync::Arc<watch::Sender<bool>>);

impl Stopper {
    /// Tells every [`Stop`] to stop.
    pub fn stop(&self) {
        let _ = self.0.send(true);
    }
}

impl Stop {
    /// A pair of both ends.
    pub fn new() -> (Stopper, Stop) {
        let (tx, rx) = watch::channel(false);
        (Stopper(std::sync::Arc::new(tx)), Stop(rx))
    }

    /// A [`Stop`] that fires at the first SIGTERM or SIGINT of this process. Needs a tokio runtime.
    pub fn on_signals() -> std::io::Result<Stop> {
        let (stopper, stop) = Stop::new();
        let mut term = signal(SignalKind::terminate())?;
        let mut int = signal(SignalKind::interrupt())?;
        tokio::spawn(async move {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            stopper.stop();
        });
        Ok(stop)
    }

    /// Whether it is time to stop.
    pub fn stopped(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns when it is time to stop.
    pub async fn wait(&self) {
        let mut rx = self.0.clone();
        if rx.wait_for(|s| *s).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
