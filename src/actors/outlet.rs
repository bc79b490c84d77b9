//! The road from a stream actor to its HTTP response: a hand-over point on one thread.
//!
//! The actor puts [`Item`]s in, the response body takes them out; both live on the same HTTP worker, so this is
//! `Rc` and `RefCell`, no lock. While the socket is behind, items wait here and their bytes are counted.
//!
//! Invariant: dropping the [`OutletReader`] (client gone, handler cancelled) is seen by the writer at once.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use super::messages::Item;

/// Makes a connected pair.
pub fn outlet() -> (OutletWriter, OutletReader) {
    let shared = Rc::new(RefCell::new(Shared::default()));
    (OutletWriter(shared.clone()), OutletReader(shared))
}

#[derive(Default)]
struct Shared {
    items: VecDeque<Item>,
    bytes: usize,
    taken: u64,
    writer_gone: bool,
    reader_gone: bool,
    reader: Option<Waker>,
    /// Of everyone who waits for the reader to go: the request's actor and, later, the stream's.
    writers: Vec<Waker>,
    on_cut: Option<Box<dyn FnOnce()>>,
}

pub struct OutletWriter(Rc<RefCell<Shared>>);
pub struct OutletReader(Rc<RefCell<Shared>>);

impl OutletWriter {
    /// Queues an item; false when nobody will read it.
    pub fn put(&self, item: Item) -> bool {
        let mut shared = self.0.borrow_mut();
        if shared.reader_gone {
            return false;
        }
        shared.bytes += item.approx_bytes();
        shared.items.push_back(item);
        if let Some(waker) = shared.reader.take() {
            waker.wake();
        }
        true
    }

    pub fn is_reader_gone(&self) -> bool {
        self.0.borrow().reader_gone
    }

    /// Bytes waiting, and how many items the reader has taken so far: together they tell a slow reader from a stuck one.
    pub fn backlog(&self) -> (usize, u64) {
        let shared = self.0.borrow();
        (shared.bytes, shared.taken)
    }

    /// Gives up on the reader, which does not read: a body that is not polled cannot end itself, so whoever built it
    /// says how its connection is closed ([`OutletReader::on_cut`]).
    pub fn cut(&self) {
        let on_cut = self.0.borrow_mut().on_cut.take();
        if let Some(on_cut) = on_cut {
            on_cut();
        }
    }

    /// Resolves when the reader has been dropped, for everyone who waits for it.
    pub fn reader_gone(&self) -> impl Future<Output = ()> + 'static {
        let shared = self.0.clone();
        poll_fn(move |cx| {
            let mut shared = shared.borrow_mut();
            if shared.reader_gone {
                return Poll::Ready(());
            }
            // One task is in once: the list is as long as there are waiting actors, two.
            if !shared.writers.iter().any(|waker| waker.will_wake(cx.waker())) {
                shared.writers.push(cx.waker().clone());
            }
            Poll::Pending
        })
    }
}

impl OutletReader {
    /// The next item; `None` once the writer is gone and everything has been taken.
    pub fn poll_next(&mut self, cx: &mut std::task::Context<'_>) -> Poll<Option<Item>> {
        let mut shared = self.0.borrow_mut();
        if let Some(item) = shared.items.pop_front() {
            shared.bytes -= item.approx_bytes();
            shared.taken += 1;
            return Poll::Ready(Some(item));
        }
        if shared.writer_gone {
            return Poll::Ready(None);
        }
        shared.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    pub fn on_cut(&mut self, close: impl FnOnce() + 'static) {
        self.0.borrow_mut().on_cut = Some(Box::new(close));
    }

    pub async fn next(&mut self) -> Option<Item> {
        poll_fn(|cx| self.poll_next(cx)).await
    }
}

impl Drop for OutletWriter {
    fn drop(&mut self) {
        let mut shared = self.0.borrow_mut();
        shared.writer_gone = true;
        if let Some(waker) = shared.reader.take() {
            waker.wake();
        }
    }
}

impl Drop for OutletReader {
    fn drop(&mut self) {
        let mut shared = self.0.borrow_mut();
        shared.reader_gone = true;
        shared.items.clear();
        shared.bytes = 0;
        shared.writers.drain(..).for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Wake};

    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn everyone_who_waits_for_the_reader_to_go_is_woken_once() {
        let (writer, reader) = outlet();
        let (mut first, mut second) = (pin!(writer.reader_gone()), pin!(writer.reader_gone()));
        let (wakes, others) = (Arc::new(Wakes::default()), Arc::new(Wakes::default()));
        let (waker, other) = (Waker::from(wakes.clone()), Waker::from(others.clone()));
        for _ in 0..3 {
            assert!(first.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            assert!(second.as_mut().poll(&mut Context::from_waker(&other)).is_pending());
        }
        drop(reader);
        assert_eq!((wakes.0.load(Ordering::Relaxed), others.0.load(Ordering::Relaxed)), (1, 1));
        assert!(first.as_mut().poll(&mut Context::from_waker(&waker)).is_ready());
        assert!(second.as_mut().poll(&mut Context::from_waker(&other)).is_ready());
    }
}
