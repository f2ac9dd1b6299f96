package differential

import (
	"strings"
	"time"
)

// shrinkTime bounds how long a script is shortened.
const shrinkTime = 60 * time.Second

// shrink searches for a shorter script with the same kind of difference.
func (r *runner) shrink(whole script, found *difference) (script, *difference) {
	end := time.Now().Add(shrinkTime)
	fails := func(s script) *difference {
		if time.Now().After(end) {
			return nil
		}
		if d := r.replay(s); d != nil && d.kind == found.kind && d.codes == found.codes && d.who.name == found.who.name {
			return d
		}
		return nil
	}
	all := r.others
	defer func() { r.others = all }()
	for _, one := range all {
		if one.name == found.who.name {
			r.others = []*database{one}
		}
	}
	last := fails(whole)
	if last == nil {
		return whole, found // the difference does not occur every time
	}
	short := whole
	for changed := true; changed && time.Now().Before(end); {
		changed = false
		for _, smaller := range []func(script, func(script) bool) (script, bool){dropSteps, plainSteps, dropWords} {
			better, ok := smaller(short, func(s script) bool {
				d := fails(s)
				if d != nil {
					last = d
				}
				return d != nil
			})
			if ok {
				short, changed = better, true
			}
		}
	}
	return short, last
}

// replay runs a script from the start.
func (r *runner) replay(s script) *difference {
	r.begin()
	for _, step := range s {
		if found := r.step(step); found != nil {
			return found
		}
	}
	return nil
}

// dropSteps leaves out steps: many at once first, single ones at last.
func dropSteps(s script, fails func(script) bool) (script, bool) {
	changed := false
	for size := max(1, len(s)/2); size > 0; size /= 2 {
		for at := len(s) - size; at >= 0; at -= size {
			if at+size > len(s) {
				continue
			}
			shorter := append(append(script{}, s[:at]...), s[at+size:]...)
			if fails(shorter) {
				s, changed = shorter, true
			}
		}
	}
	return s, changed
}

// plainSteps makes steps simpler: the first connection, Exec, literals.
func plainSteps(s script, fails func(script) bool) (script, bool) {
	changed := false
	for i := range s {
		for _, simpler := range s[i].simpler() {
			other := append(script{}, s...)
			other[i] = simpler
			if fails(other) {
				s, changed = other, true
				break
			}
		}
	}
	return s, changed
}

func (s step) simpler() (all []step) {
	add := func(change func(s *step)) {
		simple := s
		change(&simple)
		all = append(all, simple)
	}
	if s.conn != 0 {
		add(func(s *step) { s.conn = 0 })
	}
	switch s.how {
	case query, preparedQuery, preparedExec:
		add(func(s *step) { s.how = exec })
	}
	if s.how == preparedQuery {
		add(func(s *step) { s.how = query })
	}
	if text, ok := s.inlined(); ok && len(s.args) > 0 {
		add(func(s *step) { s.text, s.args = text, nil })
	}
	if all := parts(s.text); len(all) > 1 {
		for i := range all {
			add(func(s *step) { s.text = strings.Join(append(append([]string{}, all[:i]...), all[i+1:]...), ";\n") })
		}
	}
	return all
}

// inlined returns the text with literals in place of parameters, if that is possible.
func (s step) inlined() (string, bool) {
	text := s.text
	for i := len(s.args) - 1; i >= 0; i-- {
		v, name := s.args[i], ""
		if n, ok := v.(named); ok {
			v, name = n.value, n.name
		}
		lit, ok := literal(v)
		if !ok {
			return "", false
		}
		if name != "" {
			for _, mark := range []string{":", "@", "$"} {
				text = strings.ReplaceAll(text, mark+name, lit)
			}
			continue
		}
		if numbered := "?" + string(rune('1'+i)); i < 9 && strings.Contains(text, numbered) {
			text = strings.ReplaceAll(text, numbered, lit)
			continue
		}
		at := strings.LastIndex(text, "?")
		if at < 0 {
			return "", false
		}
		text = text[:at] + lit + text[at+1:]
	}
	return text, true
}

// dropWords leaves out parts of texts.
func dropWords(s script, fails func(script) bool) (script, bool) {
	changed := false
	for i := len(s) - 1; i >= 0; i-- {
		if len(parts(s[i].text)) > 1 {
			continue
		}
		words := tokens(s[i].text)
		for size := min(16, len(words)/2); size > 0; size /= 2 {
			for at := 1; at+size <= len(words); {
				shorter := append(append([]string{}, words[:at]...), words[at+size:]...)
				other := append(script{}, s...)
				other[i].text = strings.Join(shorter, "")
				if fails(other) {
					s, words, changed = other, shorter, true
				} else {
					at++
				}
			}
		}
	}
	return s, changed
}

// tokens cuts a text into pieces. Joined, they are the text again.
func tokens(text string) (all []string) {
	for len(text) > 0 {
		n := 1
		switch c := text[0]; {
		case c == '\'' || c == '"':
			for n < len(text) && text[n] != c {
				n++
			}
			n = min(n+1, len(text))
		case word(c):
			for n < len(text) && word(text[n]) {
				n++
			}
		}
		for n < len(text) && text[n] == ' ' {
			n++
		}
		all = append(all, text[:n])
		text = text[n:]
	}
	return all
}

func word(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80 || c == '.'
}
