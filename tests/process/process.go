// Package process runs parts of a test in processes of their own, which can be
// killed and paused, unlike nodes inside the test's process.
//
//   - process.go starts the test's own binary again, as a service that answers
//     requests; every test with processes uses it.
//   - node.go and service.go are a node as such a service, with writers that note
//     each acknowledged write.
//   - network.go connects nodes through links that can be cut.
//
// Package tests/faults has the tests of what killed nodes leave behind, and
// tests/consistency has those of what clients see meanwhile, with services of its own.
package process

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// variable is in the environment of processes that were started by Start. It holds
// the argument of the service.
const variable = "HIQLITE_TEST_PROCESS"

// A Service is what a started process does. Do answers one request; requests are
// served at the same time. Close is called when the parent has closed the input.
type Service interface {
	Do(method string, args json.RawMessage) (reply any, err error)
	Close() error
}

type request struct {
	ID     uint64
	Method string
	Args   json.RawMessage
}

type response struct {
	ID    uint64
	Reply json.RawMessage
	Error string
}

// Serve is called first in TestMain. In a process that was started by Start it runs
// the service that open returns, and ends the process. In any other process it does
// nothing.
func Serve(open func(argument json.RawMessage) (Service, error)) {
	argument, started := os.LookupEnv(variable)
	if !started {
		return
	}
	if err := serve(open, json.RawMessage(argument)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func serve(open func(json.RawMessage) (Service, error), argument json.RawMessage) error {
	service, err := open(argument)
	if err != nil {
		return err
	}
	var output sync.Mutex // lines of responses
	for requests := json.NewDecoder(os.Stdin); ; {
		var r request
		if err := requests.Decode(&r); errors.Is(err, io.EOF) {
			return service.Close()
		} else if err != nil {
			return err
		}
		go func() {
			reply, err := service.Do(r.Method, r.Args)
			answer := response{ID: r.ID}
			if err == nil {
				answer.Reply, err = json.Marshal(reply)
			}
			if err != nil {
				answer.Error = err.Error()
			}
			output.Lock()
			defer output.Unlock()
			if err := json.NewEncoder(os.Stdout).Encode(answer); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}()
	}
}

var (
	// ErrEnded says that the process ended before it answered.
	ErrEnded = errors.New("the process has ended")
	// ErrSilent says that the process did not answer in time.
	ErrSilent = errors.New("the process does not answer")
)

// A Process is a service in a process of its own.
type Process struct {
	cmd    *exec.Cmd
	log    string // path of what it writes to standard error
	ended  chan struct{}
	err    error // of the process; set before ended is closed
	killed atomic.Bool

	write sync.Mutex // of requests to stdin
	stdin io.WriteCloser

	mu      sync.Mutex
	lastID  uint64
	pending map[uint64]chan response
}

// Start starts a service; argument is what open gets there, as JSON. What the
// process writes to standard error is appended to the file log. If a command is
// given, it is the one that starts the process, as VirtualNetwork.Command.
func Start(argument any, log string, command ...string) (*Process, error) {
	text, err := json.Marshal(argument)
	if err != nil {
		return nil, err
	}
	stderr, err := os.OpenFile(log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer stderr.Close()
	command = append(command, os.Args[0])
	p := &Process{cmd: exec.Command(command[0], command[1:]...), log: log, ended: make(chan struct{}), pending: map[uint64]chan response{}}
	p.cmd.Env = append(os.Environ(), variable+"="+string(text))
	p.cmd.Stderr = stderr
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go p.deliver(stdout)
	return p, nil
}

// deliver hands responses to their callers until the process ends.
func (p *Process) deliver(stdout io.Reader) {
	responses := json.NewDecoder(stdout)
	for {
		var r response
		if responses.Decode(&r) != nil {
			break
		}
		p.mu.Lock()
		caller := p.pending[r.ID]
		delete(p.pending, r.ID)
		p.mu.Unlock()
		caller <- r
	}
	p.err = p.cmd.Wait()
	close(p.ended)
}

// A Call is a request that was sent.
type Call struct {
	p      *Process
	method string
	answer chan response
}

// Send sends a request. If the process has ended, Wait returns ErrEnded.
func (p *Process) Send(method string, args any) (*Call, error) {
	text, err := json.Marshal(args)
	if err != nil {
		return nil, err
	}
	c := &Call{p: p, method: method, answer: make(chan response, 1)}
	p.mu.Lock()
	p.lastID++
	r := request{ID: p.lastID, Method: method, Args: text}
	p.pending[r.ID] = c.answer
	p.mu.Unlock()
	line, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	p.write.Lock()
	defer p.write.Unlock()
	p.stdin.Write(append(line, '\n')) // an error shows in ended
	return c, nil
}

// Wait waits for the answer to a request and decodes it into reply. Errors other
// than ErrEnded and ErrSilent are those of the service, as texts. After ErrSilent
// the process has written its goroutines to its log and ends.
func (c *Call) Wait(reply any, timeout time.Duration) error {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	var r response
	select {
	case r = <-c.answer:
	case <-timer.C:
		c.p.killed.Store(true)
		c.p.cmd.Process.Signal(syscall.SIGQUIT)
		return fmt.Errorf("%w: %s, after %v", ErrSilent, c.method, timeout)
	case <-c.p.ended:
		select {
		case r = <-c.answer: // its last words
		default:
			return ErrEnded
		}
	}
	if r.Error != "" {
		return errors.New(r.Error)
	}
	return json.Unmarshal(r.Reply, reply)
}

// Call sends a request and waits for its answer.
func (p *Process) Call(method string, args, reply any, timeout time.Duration) error {
	c, err := p.Send(method, args)
	if err != nil {
		return err
	}
	return c.Wait(reply, timeout)
}

// Kill ends the process by SIGKILL, and returns when it has ended.
func (p *Process) Kill() {
	p.killed.Store(true)
	p.cmd.Process.Kill()
	<-p.ended
	p.stdin.Close()
}

// Close closes the input of the process, and returns when it has ended.
func (p *Process) Close() error {
	p.killed.Store(true)
	p.stdin.Close()
	<-p.ended
	return p.err
}

// Pause pauses the process with SIGSTOP, until Resume.
func (p *Process) Pause() error { return p.cmd.Process.Signal(syscall.SIGSTOP) }

// Resume lets a paused process continue.
func (p *Process) Resume() error { return p.cmd.Process.Signal(syscall.SIGCONT) }

// Ended is closed when the process has ended and its answers were delivered.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Crashed returns an error if the process has ended although the test did not end it. Ended
// must be closed.
func (p *Process) Crashed() error {
	if p.killed.Load() {
		return nil
	}
	return fmt.Errorf("the process ended by itself: %v", p.err)
}

// PID returns the id of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Log returns what the process, and others before it with the same file, have
// written to standard error.
func (p *Process) Log() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(bytes.TrimSpace(text))
}
