package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// nodes is the list that all servers and the operator have: number, address for the
// other nodes, address for clients.
var nodes = []string{
	"1 127.0.0.1:8221 127.0.0.1:8231",
	"2 127.0.0.1:8222 127.0.0.1:8232",
	"3 127.0.0.1:8223 127.0.0.1:8233",
}

// endWithin bounds how long a server takes to end; the settings give it 5 s.
const endWithin = 10 * time.Second

// servers are three processes of "hiqlite serve", with their files in one folder.
type servers struct {
	dir       string
	processes [3]*exec.Cmd // nil: not running
}

// secretFile returns the file of a secret.
func (s *servers) secretFile(name string) string { return filepath.Join(s.dir, name) }

// build builds the command from this repository, and makes the secrets.
func (s *servers) build(ctx context.Context) error {
	for _, name := range []string{"secret_raft", "secret_api"} {
		if err := os.WriteFile(s.secretFile(name), []byte(rand.Text()), 0o600); err != nil {
			return err
		}
	}
	build := exec.CommandContext(ctx, "go", "build", "-o", s.binary(), "github.com/hiqlite/hiqlite/cmd/hiqlite")
	build.Stderr = os.Stderr
	return build.Run()
}

func (s *servers) binary() string { return filepath.Join(s.dir, "hiqlite") }

// start starts server i, which writes its log into the folder.
func (s *servers) start(i int) error {
	log, err := os.OpenFile(filepath.Join(s.dir, fmt.Sprintf("node%d.log", i+1)), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close() // the process has its own descriptor
	c := exec.Command(s.binary(), "serve")
	c.Dir, c.Stdout, c.Stderr = s.dir, log, log
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "HQL_") { // the settings of this example only
			c.Env = append(c.Env, v)
		}
	}
	c.Env = append(c.Env,
		fmt.Sprintf("HQL_NODE_ID=%d", i+1),
		"HQL_NODES="+strings.Join(nodes, "\n"),
		fmt.Sprintf("HQL_DATA_DIR=node%d", i+1),
		"HQL_SECRET_RAFT_FILE="+s.secretFile("secret_raft"),
		"HQL_SECRET_API_FILE="+s.secretFile("secret_api"),
	)
	if err := c.Start(); err != nil {
		return err
	}
	s.processes[i] = c
	return nil
}

// kill ends server i without any warning, as the loss of its machine would.
func (s *servers) kill(i int) {
	_ = s.processes[i].Process.Kill()
	_ = s.processes[i].Wait() // it returns that the process was killed
	s.processes[i] = nil
}

// stop ends all servers as an operator does, by SIGTERM, and removes their files.
func (s *servers) stop() error {
	var faults []error
	for i, c := range s.processes {
		if c == nil {
			continue
		}
		if err := c.Process.Signal(syscall.SIGTERM); err != nil {
			faults = append(faults, err)
		}
		killed := time.AfterFunc(endWithin, func() { _ = c.Process.Kill() })
		if err := c.Wait(); err != nil {
			log, _ := os.ReadFile(filepath.Join(s.dir, fmt.Sprintf("node%d.log", i+1)))
			faults = append(faults, fmt.Errorf("server %d: %w; its log:\n%s", i+1, err, log))
		}
		killed.Stop()
		s.processes[i] = nil
	}
	return errors.Join(append(faults, os.RemoveAll(s.dir))...)
}
