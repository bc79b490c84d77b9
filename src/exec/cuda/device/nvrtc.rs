//! NVIDIA's run-time compiler, where it is installed: CUDA C++ to machine code for one chip. No GPU is needed.
//!
//! Reference: NVRTC 13.0 documentation. Several threads may compile at once.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::null_mut;

use super::libraries::{Opened, c_functions};
use crate::exec::cuda::sources::Source;

type Program = *mut c_void;
type Status = c_int;

/// Of what the compiler says about an error, so many characters are passed on.
const MAX_LOG: usize = 2000;

c_functions! {
    struct Functions {
        version = "nvrtcVersion": fn(*mut c_int, *mut c_int) -> Status;
        error_text = "nvrtcGetErrorString": fn(Status) -> *const c_char;
        create = "nvrtcCreateProgram":
            fn(*mut Program, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char) -> Status;
        destroy = "nvrtcDestroyProgram": fn(*mut Program) -> Status;
        compile = "nvrtcCompileProgram": fn(Program, c_int, *const *const c_char) -> Status;
        log_size = "nvrtcGetProgramLogSize": fn(Program, *mut usize) -> Status;
        log = "nvrtcGetProgramLog": fn(Program, *mut c_char) -> Status;
        cubin_size = "nvrtcGetCUBINSize": fn(Program, *mut usize) -> Status;
        cubin = "nvrtcGetCUBIN": fn(Program, *mut c_char) -> Status;
    }
}

pub struct Nvrtc {
    functions: Functions,
    about: String,
}

impl Nvrtc {
    pub fn open(library: &Opened) -> Result<Nvrtc, String> {
        // SAFETY: the types are those of nvrtc.h.
        let functions = unsafe { Functions::load(library)? };
        let (mut major, mut minor) = (0, 0);
        // SAFETY: places for two ints.
        let status = unsafe { (functions.version)(&mut major, &mut minor) };
        let nvrtc = Nvrtc { functions, about: format!("NVRTC {major}.{minor}") };
        nvrtc.check(status).map(|()| nvrtc)
    }

    /// As `NVRTC 13.0`.
    pub fn about(&self) -> &str {
        &self.about
    }

    /// A file's machine code for a chip, as `sm_90a`; or what the compiler says.
    pub fn compile(&self, source: &Source, headers: &[Source], options: &[String]) -> Result<Vec<u8>, String> {
        let c = |text: &str| CString::new(text).map_err(|e| e.to_string());
        let strings = |texts: &[&str]| texts.iter().map(|text| c(text)).collect::<Result<Vec<CString>, String>>();
        let (text, name) = (c(source.text)?, c(source.name)?);
        let texts = strings(&headers.iter().map(|header| header.text).collect::<Vec<_>>())?;
        let names = strings(&headers.iter().map(|header| header.name).collect::<Vec<_>>())?;
        let options = strings(&options.iter().map(String::as_str).collect::<Vec<_>>())?;
        let pointers = |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let (texts, names, options) = (pointers(&texts), pointers(&names), pointers(&options));
        let mut program = Compiling { nvrtc: self, program: null_mut() };
        // SAFETY: strings that outlive the call, which copies them, and as many texts as names.
        self.check(unsafe {
            let count = texts.len() as c_int;
            let (text, name) = (text.as_ptr(), name.as_ptr());
            (self.functions.create)(&mut program.program, text, name, count, texts.as_ptr(), names.as_ptr())
        })?;
        // SAFETY: a program, and as many options as said.
        let compiled = unsafe { (self.functions.compile)(program.program, options.len() as c_int, options.as_ptr()) };
        self.check(compiled).map_err(|error| format!("{error}: {}", program.log()))?;
        program.cubin()
    }

    fn check(&self, status: Status) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: it gives a string that stands for good, for any number.
        let text = unsafe {
            let text = (self.functions.error_text)(status);
            if text.is_null() { "unknown".into() } else { CStr::from_ptr(text).to_string_lossy() }
        };
        Err(format!("{}: {text}", self.about))
    }
}

/// A program, destroyed in the end.
struct Compiling<'a> {
    nvrtc: &'a Nvrtc,
    program: Program,
}

impl Compiling<'_> {
    fn log(&self) -> String {
        let functions = &self.nvrtc.functions;
        let mut size = 0;
        // SAFETY: a place for the size.
        if unsafe { (functions.log_size)(self.program, &mut size) } != 0 {
            return String::new();
        }
        let mut log = vec![0u8; size];
        // SAFETY: as many bytes as it asked for.
        if unsafe { (functions.log)(self.program, log.as_mut_ptr().cast()) } != 0 {
            return String::new();
        }
        let text = String::from_utf8_lossy(&log);
        text.trim_end_matches('\0').trim().chars().take(MAX_LOG).collect()
    }

    fn cubin(&self) -> Result<Vec<u8>, String> {
        let functions = &self.nvrtc.functions;
        let mut size = 0;
        // SAFETY: a place for the size.
        self.nvrtc.check(unsafe { (functions.cubin_size)(self.program, &mut size) })?;
        let mut cubin = vec![0u8; size];
        // SAFETY: as many bytes as it asked for.
        self.nvrtc.check(unsafe { (functions.cubin)(self.program, cubin.as_mut_ptr().cast()) })?;
        Ok(cubin)
    }
}

impl Drop for Compiling<'_> {
    fn drop(&mut self) {
        if !self.program.is_null() {
            // SAFETY: made by this library, and used by nobody any more.
            unsafe { (self.nvrtc.functions.destroy)(&mut self.program) };
        }
    }
}
