package cluster

import (
	"bytes"
	"crypto/md5"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/hiqlite/hiqlite/internal/durable"
	"github.com/lni/dragonboat/v4/raftpb"
	"github.com/lni/vfs"
)

// claimed has the folders that hosts of this process use. Dragonboat locks a folder
// with a POSIX lock, which does not exclude the same process: Dragonboat would panic
// later.
var claimed = struct {
	sync.Mutex
	dirs map[string]bool
}{dirs: map[string]bool{}}

// claimFolder creates dir if it is missing, checks that it is writable, and keeps
// other hosts of this process from using it until release is called. path is
// absolute and has no symbolic links.
func claimFolder(dir string) (path string, release func(), err error) {
	if dir == "" {
		return "", nil, errors.New("hiqlite: Config.Dir is empty: name the folder of the Raft log")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", nil, fmt.Errorf("hiqlite: cannot create the Raft folder: %w", err)
	}
	path, err = filepath.Abs(dir)
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return "", nil, fmt.Errorf("hiqlite: Raft folder %s: %w", dir, err)
	}
	probe, err := os.CreateTemp(path, ".writable-*")
	if err != nil {
		return "", nil, fmt.Errorf("hiqlite: Raft folder %s is not writable: %w", path, err)
	}
	probe.Close()
	os.Remove(probe.Name())

	claimed.Lock()
	defer claimed.Unlock()
	if claimed.dirs[path] {
		return "", nil, fmt.Errorf("hiqlite: Raft folder %s is already open in this process: share that node, or close it first", path)
	}
	claimed.dirs[path] = true
	return path, func() {
		claimed.Lock()
		defer claimed.Unlock()
		delete(claimed.dirs, path)
	}, nil
}

// InUse returns which process has a Raft folder open: "this process", "another
// process", or "" if none has.
func InUse(dir string) string {
	path, err := filepath.Abs(dir)
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return "" // there is no such folder
	}
	claimed.Lock()
	defer claimed.Unlock()
	if claimed.dirs[path] {
		return "this process"
	}
	lock := filepath.Join(path, lockFile)
	if _, err := os.Stat(lock); err != nil {
		return ""
	}
	// Closing a file releases all POSIX locks of this process on it. There are none, as
	// this process does not have the folder open.
	l, err := vfs.Default.Lock(lock)
	if err == nil {
		l.Close()
	} else if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES) {
		return "another process"
	} // for other errors, Open says what is wrong
	return ""
}

const (
	flagFile = "dragonboat.ds" // in which Dragonboat records which host owns the folder
	lockFile = "LOCK"
)

// adoptHostname makes a folder usable that was written under another hostname.
// Dragonboat keeps its data in Dir/<hostname>/... and refuses to start
// (ErrHostnameChanged) when the hostname in dragonboat.ds is not the current one,
// but a container gets a new hostname at every start. So adoptHostname takes
// Dragonboat's own lock, renames the subfolder, and then writes the new hostname to
// dragonboat.ds (8 bytes of MD5, then a raftpb.RaftDataStatus). Each step is durable
// before the next one begins, and the next start completes what a crash has
// interrupted. Dragonboat does not use paths from the log's records after a restart.
//
// It returns the former hostname, or "" if there was nothing to do.
func adoptHostname(dir string) (former string, err error) {
	flag := filepath.Join(dir, flagFile)
	data, err := os.ReadFile(flag)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	} else if err != nil {
		return "", fmt.Errorf("hiqlite: %w", err)
	}
	status, err := decodeStatus(data)
	if err != nil {
		return "", fmt.Errorf("%w: %s: %w: put back a copy of the data folder", ErrUnreadable, flag, err)
	}
	current, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("hiqlite: no hostname: %w", err)
	}
	if status.Hostname == "" || strings.EqualFold(strings.TrimSpace(status.Hostname), strings.TrimSpace(current)) {
		return "", nil
	}
	lock, err := vfs.Default.Lock(filepath.Join(dir, lockFile))
	if err != nil {
		return "", fmt.Errorf("hiqlite: Raft folder %s is in use by another process: %w", dir, err)
	}
	defer lock.Close()

	from, to := filepath.Join(dir, status.Hostname), filepath.Join(dir, current)
	if _, err := os.Stat(from); err == nil {
		if err := os.Rename(from, to); err != nil {
			return "", fmt.Errorf("hiqlite: the hostname changed from %q to %q, and the Raft log could not be renamed: %w",
				status.Hostname, current, err)
		}
		if err := durable.Sync(dir); err != nil {
			return "", fmt.Errorf("hiqlite: %w", err)
		}
	} else if _, err := os.Stat(to); err != nil {
		return "", fmt.Errorf("hiqlite: the Raft log is missing: neither %s nor %s exists", from, to)
	}
	former, status.Hostname = status.Hostname, current
	if err := writeStatus(flag, status); err != nil {
		return "", fmt.Errorf("hiqlite: %w", err)
	}
	return former, nil
}

// hasLog reports whether the Raft folder has a log.
func hasLog(dir string) bool {
	found, err := os.ReadDir(filepath.Join(dir, logFolder))
	return err == nil && len(found) > 0
}

// statusSum returns the checksum that precedes the content of dragonboat.ds.
func statusSum(content []byte) []byte {
	sum := md5.Sum(content)
	return sum[8:]
}

func decodeStatus(data []byte) (raftpb.RaftDataStatus, error) {
	var status raftpb.RaftDataStatus
	if len(data) < 8 || !bytes.Equal(data[:8], statusSum(data[8:])) {
		return status, errors.New("checksum mismatch")
	}
	return status, status.Unmarshal(data[8:])
}

// writeStatus replaces dragonboat.ds atomically and durably.
func writeStatus(path string, status raftpb.RaftDataStatus) error {
	content, err := status.Marshal()
	if err != nil {
		return err
	}
	return durable.WriteFile(path, append(statusSum(content), content...))
}
