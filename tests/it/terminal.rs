//! The program on a terminal, with a person who types.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::pty::openpty;

use crate::program::Program;

/// How long the program may take to say something, on a busy machine.
const LIMIT: Duration = Duration::from_mins(1);

/// A running program on a terminal of its own; it is killed when dropped.
pub struct Terminal {
    child: Child,
    keyboard: File,
    screen: Arc<Mutex<String>>,
    /// How much of the screen was waited for already.
    seen: usize,
}

impl Terminal {
    pub fn start(program: &Program, arguments: &[&str]) -> Self {
        let pty = openpty(None, None).unwrap();
        let command = program.command(arguments);
        let command = command.as_std();
        // Ctrl-C is a signal only on the controlling terminal.
        let mut session = Command::new("setsid");
        session.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => session.env(name, value),
                None => session.env_remove(name),
            };
        }
        session.stdin(pty.slave.try_clone().unwrap()).stdout(pty.slave.try_clone().unwrap());
        let child = session.stderr(pty.slave).spawn().unwrap();
        // Its copies of the terminal's other side would keep that open.
        drop(session);
        let keyboard = File::from(pty.master);
        let screen = Arc::new(Mutex::new(String::new()));
        let (mut shown, written) = (keyboard.try_clone().unwrap(), Arc::clone(&screen));
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // An error is how a terminal ends.
            while let Ok(count @ 1..) = shown.read(&mut bytes) {
                written.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        });
        Self { child, keyboard, screen, seen: 0 }
    }

    /// Everything on the screen, also what was typed where the terminal shows it.
    pub fn screen(&self) -> String {
        self.screen.lock().unwrap().replace("\r\n", "\n")
    }

    /// Waits for a text that comes after everything that was waited for before.
    pub fn expect(&mut self, text: &str) {
        let start = Instant::now();
        loop {
            let screen = self.screen();
            if let Some(at) = screen[self.seen..].find(text) {
                self.seen += at + text.len();
                return;
            }
            assert!(
                start.elapsed() < LIMIT,
                "{text:?} is not after {:?} in:\n{screen}",
                &screen[..self.seen]
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits for the question and answers it.
    pub fn answer(&mut self, question: &str, line: &str) {
        self.expect(question);
        self.press(&format!("{line}\n"));
    }

    /// The exit code.
    pub fn end(&mut self) -> i32 {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(start.elapsed() < LIMIT, "it does not end:\n{}", self.screen());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether the terminal shows what is typed.
    pub fn echoes(&self) -> bool {
        let settings = nix::sys::termios::tcgetattr(&self.keyboard).unwrap();
        settings.local_flags.contains(nix::sys::termios::LocalFlags::ECHO)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Both fail only for a process that has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
