package settings

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hiqlite/hiqlite"
)

// A kind is the type of a setting: how its value is written, and how it is read.
type kind struct {
	name  string // for people: what to write
	toml  tomlType
	read  func(s *Settings, text string) error
	quote bool // in the file, the value stands in quotation marks
}

// tomlType says which values of TOML a setting may have.
type tomlType int

const (
	tomlString tomlType = iota
	tomlInteger
	tomlBoolean
	tomlList    // an array of strings, or a string
	tomlMeasure // a string of a number and a unit
)

func (t tomlType) String() string {
	return [...]string{"a text in quotation marks", "a number without quotation marks", "true or false without quotation marks", "a list of texts", "a number and its unit in quotation marks"}[t]
}

func text(target func(*Settings) *string) kind {
	return kind{"text", tomlString, func(s *Settings, v string) error { *target(s) = v; return nil }, true}
}

func path(target func(*Settings) *string) kind {
	k := text(target)
	k.name = "path"
	return k
}

// address reads host:port, :port or a host alone.
func address(target func(*Settings) *string) kind {
	return kind{"host, host:port or :port", tomlString, func(s *Settings, v string) error {
		if _, port, err := net.SplitHostPort(v); err == nil {
			if n, err := net.LookupPort("tcp", port); err != nil || n == 0 {
				return errors.New("the port is not between 1 and 65535")
			}
		} else if host := strings.Trim(v, "[]"); strings.ContainsAny(host, "/ ") || strings.Contains(host, ":") && net.ParseIP(host) == nil {
			return errors.New("not host:port, with an IPv6 host in brackets")
		}
		*target(s) = v
		return nil
	}, true}
}

func secret(target func(*Settings) *hiqlite.Secret) kind {
	return kind{"secret, at least 16 bytes", tomlString, func(s *Settings, v string) (err error) {
		if *target(s), err = hiqlite.NewSecret([]byte(v)); err != nil {
			err = errors.Unwrap(err) // without the prefix, which the loader adds
		}
		return err
	}, true}
}

func boolean(target func(*Settings) *bool) kind {
	return kind{"true or false", tomlBoolean, func(s *Settings, v string) error {
		on, err := strconv.ParseBool(strings.ToLower(v))
		if err != nil {
			return errors.New("write true or false")
		}
		*target(s) = on
		return nil
	}, false}
}

func choice(target func(*Settings) *string, allowed ...string) kind {
	return kind{strings.Join(allowed, ", "), tomlString, func(s *Settings, v string) error {
		if !slices.Contains(allowed, v) {
			return fmt.Errorf("write %s", strings.Join(allowed, " or "))
		}
		*target(s) = v
		return nil
	}, true}
}

// number reads a whole number. The unit is for people.
func number[T ~int | ~int64 | ~uint64](least, most T, unit string, target func(*Settings) *T) kind {
	name := fmt.Sprintf("%d to %d", least, most)
	if unit != "" {
		name += " " + unit
	}
	return kind{name, tomlInteger, func(s *Settings, v string) error {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			return fmt.Errorf("not a whole number; write %s", name)
		}
		if n < int64(least) || n > int64(most) {
			return fmt.Errorf("not in the range: write %s", name)
		}
		*target(s) = T(n)
		return nil
	}, false}
}

// seconds reads a number of seconds, for settings whose name ends in secs.
func seconds(least, most int, target func(*Settings) *time.Duration) kind {
	k := number(least, most, "seconds", func(*Settings) *int { return new(int) })
	check := k.read
	k.read = func(s *Settings, v string) error {
		if err := check(s, v); err != nil {
			return err
		}
		n, _ := strconv.Atoi(v)
		*target(s) = time.Duration(n) * time.Second
		return nil
	}
	return k
}

func duration(least, most time.Duration, target func(*Settings) *time.Duration) kind {
	name := fmt.Sprintf("%s to %s", short(least), short(most))
	return kind{name, tomlMeasure, func(s *Settings, v string) error {
		d, err := time.ParseDuration(v)
		if _, numeric := strconv.ParseFloat(v, 64); err != nil && numeric == nil {
			return errors.New("the unit is missing: write ms, s, m or h after the number, as in 10s")
		}
		if err != nil {
			return errors.New("not a duration such as 50ms, 10s or 1m30s")
		}
		if d < least || d > most {
			return fmt.Errorf("not in the range: write %s", name)
		}
		*target(s) = d
		return nil
	}, true}
}

// short writes a duration without parts that are zero: 1m, not 1m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

// units of sizes, the longer ones first.
var units = []struct {
	name  string
	bytes int64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"B", 1}}

func size(least, most string, target func(*Settings) *int) kind {
	name := least + " to " + most
	return kind{name, tomlMeasure, func(s *Settings, v string) error {
		n, err := parseSize(v)
		if err != nil {
			return err
		}
		low, _ := parseSize(least)
		high, _ := parseSize(most)
		if n < low || n > high {
			return fmt.Errorf("not in the range: write %s", name)
		}
		*target(s) = int(n)
		return nil
	}, true}
}

func parseSize(v string) (int64, error) {
	for _, u := range units {
		digits, ok := strings.CutSuffix(v, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 32)
		if err != nil || n < 0 {
			break
		}
		return n * u.bytes, nil
	}
	return 0, errors.New("not a size such as 512KiB or 16MiB")
}

// nodeList reads the members of a cluster: "id raft_addr api_addr", one per line, or
// separated by commas.
func nodeList(target func(*Settings) *[]hiqlite.Member) kind {
	return kind{"list of \"id raft_addr api_addr\"", tomlList, func(s *Settings, v string) error {
		var members []hiqlite.Member
		var faults []error
		for line := range strings.FieldsFuncSeq(v, func(r rune) bool { return r == ',' || r == '\n' || r == '\r' }) {
			fields := strings.Fields(line)
			if len(fields) == 0 {
				continue
			}
			id, err := strconv.ParseUint(fields[0], 10, 32)
			if err != nil || id == 0 || len(fields) < 2 || len(fields) > 3 {
				faults = append(faults, fmt.Errorf("%q is not \"id raft_addr api_addr\", as in \"1 10.0.0.1:8100 10.0.0.1:8200\"", strings.Join(fields, " ")))
				continue
			}
			m := hiqlite.Member{ID: id, RaftAddr: fields[1]}
			if len(fields) == 3 {
				m.APIAddr = fields[2]
			}
			members = append(members, m)
		}
		if len(members) == 0 && faults == nil {
			return errors.New("the list is empty")
		}
		*target(s) = members
		return errors.Join(faults...)
	}, true}
}
