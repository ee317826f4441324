//! Consistent reads from memory: the store's revision, asked once for all who wait at that moment.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use pilothouse_store::{Error, Store};

type Question = Shared<BoxFuture<'static, Result<u64, Error>>>;

/// With so many readers of one question there is load: the next question waits a moment for more of them.
const CROWD: usize = 4;

/// How long it waits, by how many readers the last one had.
fn gather(readers: usize) -> Option<Duration> {
    match readers {
        0..CROWD => None,
        CROWD..16 => Some(Duration::from_millis(1)),
        _ => Some(Duration::from_millis(2)),
    }
}

/// Asks the store for its revision, for many readers at once.
pub struct Fresh {
    store: Arc<dyn Store>,
    /// The question that has not been put to the store yet, with the number of its readers: whoever comes now may
    /// join it.
    open: Arc<Mutex<Option<(Question, usize)>>>,
    /// Held while a question is with the store: how many readers the last one had.
    asking: Arc<tokio::sync::Mutex<usize>>,
}

impl Fresh {
    /// Asks `store`.
    pub fn new(store: Arc<dyn Store>) -> Fresh {
        Fresh { store, open: Arc::default(), asking: Arc::default() }
    }

    /// A revision at least that of every write that returned before this call.
    pub async fn revision(&self) -> Result<u64, Error> {
        let question = {
            let mut open = self.open.lock();
            match &mut *open {
                Some((question, readers)) => {
                    *readers += 1;
                    question.clone()
                }
                None => {
                    let (store, slot, asking) = (self.store.clone(), self.open.clone(), self.asking.clone());
                    let question = async move {
                        let mut last = asking.lock().await;
                        if let Some(moment) = gather(*last) {
                            tokio::time::sleep(moment).await;
                        }
                        // From here on the answer may be older than a newcomer's question.
                        *last = slot.lock().take().map_or(0, |(_, readers)| readers);
                        store.revision().await
                    }
                    .boxed()
                    .shared();
                    *open = Some((question.clone(), 1));
                    question
                }
            }
        };
        question.await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::super::test_store::MemoryStore;
    use super::*;

    #[tokio::test]
    async fn readers_share_questions() {
        let store = Arc::new(MemoryStore::default());
        let fresh = Arc::new(Fresh::new(store.clone()));
        let readers: Vec<_> = (0..100)
            .map(|_| {
                let fresh = fresh.clone();
                tokio::spawn(async move { fresh.revision().await })
            })
            .collect();
        for r in readers {
            assert_eq!(r.await.unwrap().unwrap(), 1);
        }
        assert!(store.revisions_asked.load(Ordering::Relaxed) <= 3);
        // One after the other, each asks by itself: nobody waits for company.
        for _ in 0..CROWD {
            let asked = store.revisions_asked.load(Ordering::Relaxed);
            fresh.revision().await.unwrap();
            assert_eq!(store.revisions_asked.load(Ordering::Relaxed), asked + 1);
        }
        // A question that its reader gave up does not block the next ones.
        let gone = fresh.clone();
        drop(Box::pin(async move { gone.revision().await }));
        assert_eq!(fresh.revision().await.unwrap(), 1);
    }
}
