package process

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"unsafe"

	"github.com/hiqlite/hiqlite"
)

// A VirtualNetwork gives each node a network namespace of its own, with an address
// that no other process has. The test carries the packets between them, and can
// delay and drop them, so that the kernels' TCP meets what it meets on a bad
// network. It needs root, the command ip, and /dev/net/tun.
type VirtualNetwork struct {
	t    testing.TB
	wire *wire
	name string            // begins the names of the namespaces
	taps map[byte]*os.File // last byte of the address -> device
	work sync.WaitGroup
}

var virtualNetworks atomic.Int32 // made by this process

// NewVirtualNetwork makes a network of n hosts. It returns an error that says what
// this machine lacks.
func NewVirtualNetwork(t testing.TB, n int) (*VirtualNetwork, error) {
	t.Helper()
	nw := &VirtualNetwork{t: t, wire: newWire(), taps: map[byte]*os.File{}, name: fmt.Sprintf("hq%d-%d-", os.Getpid(), virtualNetworks.Add(1))}
	t.Cleanup(nw.close)
	if os.Getuid() != 0 {
		return nil, errors.New("it needs root, to make network namespaces")
	}
	for host := byte(1); host <= byte(n); host++ {
		if err := nw.add(host); err != nil {
			return nil, err
		}
	}
	for host, tap := range nw.taps {
		nw.work.Go(func() { nw.read(host, tap) })
	}
	nw.work.Go(func() { nw.wire.run(nw.deliver) })
	return nw, nil
}

func (nw *VirtualNetwork) space(host byte) string { return nw.name + fmt.Sprint(host) }

// add makes the namespace of a host.
func (nw *VirtualNetwork) add(host byte) error {
	if err := run("ip", "netns", "add", nw.space(host)); err != nil {
		return err
	}
	nw.taps[host] = nil
	tap, err := openTap(nw.space(host))
	if err != nil {
		return err
	}
	nw.taps[host] = tap
	for _, args := range []string{"link set lo up", fmt.Sprintf("addr add 10.77.0.%d/24 dev tap0", host), "link set tap0 up"} {
		if err := run("ip", append([]string{"-n", nw.space(host)}, strings.Fields(args)...)...); err != nil {
			return err
		}
	}
	return nil
}

func run(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// openTap makes the device tap0 in a namespace. Reading it returns the packets that
// are sent there, and writing it lets packets arrive.
func openTap(space string) (tap *os.File, err error) {
	done := make(chan struct{})
	go func() { // the thread is in another namespace afterwards, and ends with the goroutine
		defer close(done)
		runtime.LockOSThread()
		var ns *os.File
		if ns, err = os.Open("/run/netns/" + space); err != nil {
			return
		}
		defer ns.Close()
		const cloneNewNet, sysSetns = 0x40000000, 308
		if runtime.GOARCH != "amd64" {
			err = errors.New("the number of the system call setns is known for amd64 only")
			return
		}
		if _, _, errno := syscall.RawSyscall(sysSetns, ns.Fd(), cloneNewNet, 0); errno != 0 {
			err = fmt.Errorf("entering a network namespace: %w", errno)
			return
		}
		var fd int
		if fd, err = syscall.Open("/dev/net/tun", syscall.O_RDWR|syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0); err != nil {
			err = fmt.Errorf("opening /dev/net/tun: %w", err)
			return
		}
		const tunSetIff, iffTun, iffNoPI = 0x400454ca, 1, 0x1000
		var request struct {
			name  [16]byte
			flags uint16
			_     [22]byte
		}
		copy(request.name[:], "tap0")
		request.flags = iffTun | iffNoPI
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), tunSetIff, uintptr(unsafe.Pointer(&request))); errno != 0 {
			syscall.Close(fd)
			err = fmt.Errorf("making a device of /dev/net/tun: %w", errno)
			return
		}
		tap = os.NewFile(uintptr(fd), "tap0")
	}()
	<-done
	return tap, err
}

// read takes the packets that a host sends.
func (nw *VirtualNetwork) read(host byte, tap *os.File) {
	for packet := make([]byte, 64<<10); ; {
		n, err := tap.Read(packet)
		if err != nil {
			return
		}
		if n < 20 || packet[0]>>4 != 4 { // only IPv4 has addresses here
			continue
		}
		if to := packet[19]; nw.wire.packet(host, to, packet[:n]) {
			nw.deliver(to, packet[:n])
		}
	}
}

func (nw *VirtualNetwork) deliver(to byte, packet []byte) {
	if tap := nw.taps[to]; tap != nil {
		tap.Write(packet) // an error is a lost packet
	}
}

// close ends the network. Processes in it have to be gone.
func (nw *VirtualNetwork) close() {
	close(nw.wire.done)
	for _, tap := range nw.taps {
		if tap != nil {
			tap.Close()
		}
	}
	nw.work.Wait()
	for host := range nw.taps {
		if err := run("ip", "netns", "del", nw.space(host)); err != nil {
			nw.t.Error(err)
		}
	}
}

// Members returns the nodes of a cluster, one on each host.
func (nw *VirtualNetwork) Members() (members []hiqlite.Member) {
	for host := byte(1); int(host) <= len(nw.taps); host++ {
		members = append(members, hiqlite.Member{ID: uint64(host), RaftAddr: fmt.Sprintf("10.77.0.%d:8200", host)})
	}
	return members
}

// Command returns the command that starts another one on the host of a node.
func (nw *VirtualNetwork) Command(nodeID uint64) []string {
	return []string{"ip", "netns", "exec", nw.space(byte(nodeID))}
}

// Set sets the conditions between all hosts.
func (nw *VirtualNetwork) Set(c Conditions) {
	nw.wire.mu.Lock()
	defer nw.wire.mu.Unlock()
	nw.wire.conditions = c
}

// Cut drops all packets from and to a node, or delivers them again.
func (nw *VirtualNetwork) Cut(nodeID uint64, cut bool) {
	nw.wire.mu.Lock()
	defer nw.wire.mu.Unlock()
	for host := range nw.taps {
		nw.wire.cut[[2]byte{byte(nodeID), host}] = cut
		nw.wire.cut[[2]byte{host, byte(nodeID)}] = cut
	}
}
