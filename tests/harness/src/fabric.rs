// SPDX-License-Identifier: Apache-2.0
//! The switch's sockets: carries frames between QEMU's stream backends (a four-byte big-endian length before each frame)
//! and the [`Switch`], and records them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc};

use crate::pcap::Pcap;
use crate::switch::{Frame, PortId, Switch};

/// Frames that wait for a VM; more are dropped, as a real switch does.
const QUEUE: usize = 1024;
/// Nothing that QEMU sends is longer (64 KiB and headers).
const LONGEST: u32 = 70_000;

pub(crate) struct Fabric {
    inner: Mutex<Inner>,
    due_changed: Notify,
    epoch: Instant,
}

struct Inner {
    switch: Switch,
    towards: BTreeMap<PortId, mpsc::Sender<Frame>>,
    capture: Option<Pcap<BufWriter<File>>>,
    paused: bool,
    arrived: u64,
}

impl Fabric {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        let inner = Inner {
            switch: Switch::new(seed),
            towards: BTreeMap::new(),
            capture: None,
            paused: false,
            arrived: 0,
        };
        let fabric =
            Arc::new(Self { inner: Mutex::new(inner), due_changed: Notify::new(), epoch: Instant::now() });
        tokio::spawn(Arc::clone(&fabric).deliver_late());
        fabric
    }

    /// Adds a port in `lan` whose VM connects at `path`, now and after each power cycle. A port that exists only moves.
    pub(crate) fn attach(self: &Arc<Self>, port: PortId, lan: u8, path: &Path) -> Result<()> {
        if self.switch(|switch| switch.has_port(port)) {
            self.switch(|switch| switch.add_port(port, lan));
            return Ok(());
        }
        let listener = bind(path)?;
        self.lock().switch.add_port(port, lan);
        let fabric = Arc::clone(self);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (reader, writer) = stream.into_split();
                let (send, receive) = mpsc::channel(QUEUE);
                fabric.lock().towards.insert(port, send);
                fabric.plugged(port);
                tokio::spawn(write_frames(writer, receive));
                tokio::spawn(Arc::clone(&fabric).read_frames(port, reader));
            }
        });
        Ok(())
    }

    /// Runs `with` on the switch.
    pub(crate) fn switch<T>(&self, with: impl FnOnce(&mut Switch) -> T) -> T {
        with(&mut self.lock().switch)
    }

    /// A cable was plugged in, or the VM behind it switched on.
    pub(crate) fn plugged(&self, port: PortId) {
        let now = self.epoch.elapsed();
        self.switch(|switch| switch.plugged(port, now));
    }

    /// Records every frame from now on into `path`.
    pub(crate) fn start_capture(&self, path: &Path) -> Result<()> {
        let file = File::create(path).with_context(|| format!("failed to create `{}`", path.display()))?;
        self.lock().capture = Some(Pcap::new(BufWriter::new(file))?);
        Ok(())
    }

    /// Ends the recording.
    pub(crate) fn stop_capture(&self) {
        self.lock().capture = None;
    }

    /// Delivers nothing more and forgets what is under way.
    pub(crate) fn pause(&self) {
        let mut inner = self.lock();
        inner.paused = true;
        inner.switch.flush();
    }

    /// Waits until what stopped VMs had sent before has arrived (and, while paused, is dropped).
    pub(crate) async fn quiesce(&self) {
        loop {
            let before = self.lock().arrived;
            tokio::time::sleep(Duration::from_millis(10)).await;
            if self.lock().arrived == before {
                break;
            }
        }
    }

    /// Delivers again.
    pub(crate) fn resume(&self) {
        self.lock().paused = false;
    }

    async fn read_frames(self: Arc<Self>, port: PortId, reader: OwnedReadHalf) {
        let mut reader = BufReader::with_capacity(128 * 1024, reader);
        while let Ok(length) = reader.read_u32().await {
            if length > LONGEST {
                eprintln!("port {port}: a frame of {length} bytes; the cable is unplugged");
                break;
            }
            let mut frame = vec![0; length as usize];
            if reader.read_exact(&mut frame).await.is_err() {
                break;
            }
            self.take(port, &frame.into());
        }
    }

    fn take(&self, port: PortId, frame: &Frame) {
        let now = self.epoch.elapsed();
        let mut inner = self.lock();
        inner.arrived += 1;
        if let Some(capture) = &mut inner.capture {
            let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            if let Err(error) = capture.frame(wall, frame) {
                eprintln!("capture ended: {error}");
                inner.capture = None;
            }
        }
        if inner.paused {
            return;
        }
        inner.switch.ingress(port, frame, now);
        inner.deliver(now);
        if inner.switch.next_due().is_some() {
            self.due_changed.notify_one();
        }
    }

    async fn deliver_late(self: Arc<Self>) {
        loop {
            let due = self.lock().switch.next_due();
            let changed = self.due_changed.notified();
            match due {
                None => changed.await,
                Some(due) => {
                    tokio::select! {
                        () = changed => {}
                        () = tokio::time::sleep_until((self.epoch + due).into()) => {
                            self.lock().deliver(self.epoch.elapsed());
                        }
                    }
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The daemon has one thread; a panic under the lock has ended it.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn deliver(&mut self, now: Duration) {
        while let Some((port, frame)) = self.switch.poll(now) {
            let sent =
                self.towards.get(&port).is_some_and(|queue| queue.try_send(Arc::clone(&frame)).is_ok());
            if !sent {
                self.switch.overflowed(port, &frame);
            }
        }
    }
}

async fn write_frames(mut writer: OwnedWriteHalf, mut frames: mpsc::Receiver<Frame>) {
    let mut buffer = Vec::new();
    while let Some(frame) = frames.recv().await {
        buffer.clear();
        buffer.extend((frame.len() as u32).to_be_bytes());
        buffer.extend(&frame[..]);
        if writer.write_all(&buffer).await.is_err() {
            break;
        }
    }
}

/// Listens at `path`, replacing what a daemon that died has left there.
pub(crate) fn bind(path: &Path) -> Result<UnixListener> {
    let _ = std::fs::remove_file(path);
    UnixListener::bind(path).with_context(|| format!("failed to listen at `{}`", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::switch::Direction;
    use tokio::net::UnixStream;

    struct Port(UnixStream);

    impl Port {
        async fn send(&mut self, to: u8, from: u8) {
            let mut bytes = 60u32.to_be_bytes().to_vec();
            bytes.extend([[0x52, 0, 0, 0, 0, to], [0x52, 0, 0, 0, 0, from]].concat());
            bytes.resize(64, 0);
            self.0.write_all(&bytes).await.expect("write");
        }

        /// The sender of the next frame.
        async fn receive(&mut self) -> Option<u8> {
            self.receive_within(Duration::from_secs(20)).await
        }

        async fn receives_nothing(&mut self) -> bool {
            self.receive_within(Duration::from_millis(200)).await.is_none()
        }

        async fn receive_within(&mut self, limit: Duration) -> Option<u8> {
            let read = async {
                assert_eq!(self.0.read_u32().await.expect("length"), 60);
                let mut frame = [0; 60];
                self.0.read_exact(&mut frame).await.expect("frame");
                frame[11]
            };
            tokio::time::timeout(limit, read).await.ok()
        }
    }

    async fn three(fabric: &Arc<Fabric>, folder: &Path) -> [Port; 3] {
        let mut ports = Vec::new();
        for vm in 1..=3 {
            let path = folder.join(format!("{vm}"));
            fabric.attach(PortId::new(vm, 1), 1, &path).expect("attach");
            ports.push(Port(UnixStream::connect(&path).await.expect("connect")));
        }
        while fabric.lock().towards.len() < 3 {
            tokio::task::yield_now().await;
        }
        ports.try_into().ok().expect("three")
    }

    #[tokio::test]
    async fn carries_frames_with_faults_and_records_them() {
        let folder = tempfile::tempdir().expect("folder");
        let fabric = Fabric::new(1);
        let [mut one, mut two, mut three] = three(&fabric, folder.path()).await;
        let capture = folder.path().join("capture");
        fabric.start_capture(&capture).expect("capture");

        one.send(0xff, 1).await;
        assert_eq!((two.receive().await, three.receive().await), (Some(1), Some(1)));

        fabric.switch(|switch| {
            switch.set_faults(2, None, Direction::Received, |faults| faults.delay_us = 50_000)
        });
        let start = Instant::now();
        one.send(0xff, 1).await;
        assert_eq!(three.receive().await, Some(1));
        assert_eq!(two.receive().await, Some(1));
        assert!(start.elapsed() >= Duration::from_millis(50));

        fabric.switch(|switch| switch.partition(vec![[1].into(), [2, 3].into()]));
        one.send(0xff, 1).await;
        assert!(two.receives_nothing().await && three.receives_nothing().await);

        fabric.stop_capture();
        let file = std::fs::read(&capture).expect("capture");
        assert_eq!(crate::pcap::frames(&file).len(), 3, "lost frames are recorded too");
    }

    #[tokio::test]
    async fn drops_what_arrives_while_paused() {
        let folder = tempfile::tempdir().expect("folder");
        let fabric = Fabric::new(1);
        let [mut one, mut two, _three] = three(&fabric, folder.path()).await;
        fabric.pause();
        one.send(2, 1).await;
        fabric.quiesce().await;
        fabric.resume();
        assert!(two.receives_nothing().await);
        one.send(2, 1).await;
        assert_eq!(two.receive().await, Some(1));
    }
}
