// SPDX-License-Identifier: Apache-2.0
//! Web servers, good ones and ones that are not.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::PathBuf,
    sync::{Arc, Mutex},
    thread,
};

/// A request: path, and the first byte that is asked for.
type Answer = Box<dyn Fn(&str, u64, &mut TcpStream) + Send + Sync>;

/// A web server on a port of its own; it counts its requests.
pub(crate) struct Server {
    pub(crate) url: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    pub(crate) fn start(answer: impl Fn(&str, u64, &mut TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (answer, list): (Arc<Answer>, _) = (Arc::new(Box::new(answer)), asked.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (answer, list) = (answer.clone(), list.clone());
                thread::spawn(move || one(stream.unwrap(), &answer, &list));
            }
        });
        Self { url, asked }
    }

    pub(crate) fn count(&self, end: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|path| path.ends_with(end)).count()
    }
}

fn one(mut stream: TcpStream, answer: &Answer, asked: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        // Whoever speaks something else, such as TLS, is not understood.
        if !matches!(reader.read_line(&mut head), Ok(1..)) {
            return;
        }
    }
    let path = head.split(' ').nth(1).unwrap().to_owned();
    let range = head.to_lowercase();
    let range = range.split_once("range: bytes=").and_then(|(_, rest)| rest.split('-').next()?.parse().ok());
    asked.lock().unwrap().push(path.clone());
    answer(&path, range.unwrap_or(0), &mut stream);
}

/// As a good server answers, but for what `give` leaves of the body.
pub(crate) fn send(stream: &mut TcpStream, content: &[u8], from: u64, give: usize) {
    let part = &content[from as usize..];
    let head = if from == 0 {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", part.len())
    } else {
        format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {from}-{}/{}\r\nContent-Length: {}\r\n\r\n",
            content.len() - 1,
            content.len(),
            part.len()
        )
    };
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(&part[..give.min(part.len())]);
}

pub(crate) fn absent(stream: &mut TcpStream) {
    let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnone");
}

/// Files of a folder, whole.
pub(crate) fn serve_folder(dir: PathBuf) -> impl Fn(&str, u64, &mut TcpStream) + Send + Sync {
    move |path, from, stream| match fs::read(dir.join(path.trim_start_matches("/0.2/"))) {
        Ok(content) => send(stream, &content, from, usize::MAX),
        Err(_) => absent(stream),
    }
}
