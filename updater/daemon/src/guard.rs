// SPDX-License-Identifier: Apache-2.0
//! A clock of its own for the check of a boot: whatever hangs there, be it D-Bus, a disk or a lock, ends it.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

/// Acts if there is no verdict in time.
#[derive(Debug)]
pub struct Guard(Arc<AtomicBool>);

impl Guard {
    /// One that does `late` after `limit`, on a thread that waits for nothing else.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn new(limit: Duration, late: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let judged = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&judged);
        thread::Builder::new().name("guard".to_owned()).spawn(move || {
            thread::sleep(limit);
            if !seen.load(Ordering::SeqCst) {
                late();
            }
        })?;
        Ok(Self(judged))
    }

    /// One that never does anything.
    #[must_use]
    pub fn none() -> Self {
        Self(Arc::default())
    }

    /// There is a verdict: the clock has done its work.
    pub fn judged(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Does `work` beside, and waits for it for `limit` at most: journal and disk may be what hangs.
pub fn try_for(limit: Duration, work: impl FnOnce() + Send + 'static) {
    let (done, is_done) = mpsc::channel();
    let begun = thread::Builder::new().spawn(move || {
        work();
        let _ = done.send(());
    });
    if begun.is_ok() {
        let _ = is_done.recv_timeout(limit);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn acts_without_a_verdict_and_not_with_one() {
        let (late, is_late) = mpsc::channel();
        let other = late.clone();
        let _hangs = Guard::new(SHORT, move || late.send("hangs").unwrap()).unwrap();
        assert_eq!(is_late.recv_timeout(LONG), Ok("hangs"));
        let judged = Guard::new(SHORT, move || other.send("judged").unwrap()).unwrap();
        judged.judged();
        // The sender goes with the thread, which ends when its time has come.
        assert_eq!(is_late.recv_timeout(LONG), Err(mpsc::RecvTimeoutError::Disconnected));
    }

    #[test]
    fn does_not_wait_for_what_hangs() {
        let (hold, held) = mpsc::channel::<()>();
        let begun = Instant::now();
        try_for(SHORT, move || {
            let _ = held.recv();
        });
        assert!(begun.elapsed() >= SHORT && begun.elapsed() < LONG);
        drop(hold);
        let (tell, told) = mpsc::channel();
        try_for(LONG, move || tell.send(()).unwrap());
        assert!(told.try_recv().is_ok());
    }
}
