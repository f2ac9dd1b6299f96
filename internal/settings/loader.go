package settings

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/hiqlite/hiqlite/internal/spelling"
)

const (
	prefix      = "HQL_"
	fileSuffix  = "_FILE"
	defaultFile = "hiqlite.toml"

	maxFile  = 1 << 20  // bytes of a file of settings
	maxValue = 64 << 10 // bytes of a file that has one value
)

// A value is the text of a setting, and the source that gives it.
type value struct{ text, source string }

// A loader collects values from their sources, and the faults of all of them.
type loader struct {
	settings *Settings
	given    map[string]value // by key
	broken   []string         // keys whose value could not be read
	faults   []error
}

// fault adds an error about what a source gives. Shown is the value, "" for none.
func (l *loader) fault(source, shown string, err error) {
	if shown != "" && !strings.Contains(shown, "\n") {
		source += " = " + shown
	}
	l.faults = append(l.faults, fmt.Errorf("hiqlite: %s: %w", source, err))
}

// environment reads the variables of the environment. An empty variable is one that
// is not set.
func (l *loader) environment(environ []string) {
	variables := map[string]string{}
	for _, pair := range environ {
		if name, v, ok := strings.Cut(pair, "="); ok && strings.HasPrefix(name, prefix) && v != "" {
			variables[name] = v
		}
	}
	delete(variables, configVariable)
	for i := range table {
		s := &table[i]
		v, direct := variables[s.Variable]
		file, fromFile := variables[s.Variable+fileSuffix]
		delete(variables, s.Variable)
		delete(variables, s.Variable+fileSuffix)
		switch {
		case direct && fromFile:
			l.fault(s.Variable+" and "+s.Variable+fileSuffix, "", errors.New("both are set: give one of them"))
		case direct:
			l.given[s.Key] = value{v, s.Variable}
		case fromFile && s.isPath:
			l.given[s.Key] = value{file, s.Variable + fileSuffix}
		case fromFile:
			b, err := readFile(file, maxValue)
			if err != nil {
				l.fault(s.Variable+fileSuffix, file, err)
				l.broken = append(l.broken, s.Key)
				continue
			}
			l.given[s.Key] = value{strings.TrimRight(string(b), "\r\n"), "the file " + file + " of " + s.Variable + fileSuffix}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(variables)) {
		l.fault(name, "", unknownVariable(name))
	}
}

// unknownVariable returns the error for a variable that is not in the table.
func unknownVariable(name string) error {
	base := strings.TrimSuffix(name, fileSuffix)
	for _, n := range []string{name, base} {
		if hint, ok := hintFor(n); ok {
			return fmt.Errorf("this setting of the Rust hiqlite does not exist here: %s", hint)
		}
	}
	names := []string{configVariable}
	for _, s := range table {
		names = append(names, s.Variable, s.Variable+fileSuffix)
	}
	return fmt.Errorf("unknown variable: did you mean %s?", spelling.Nearest(name, names))
}

func hintFor(variable string) (string, bool) {
	if hint, ok := elsewhere[variable]; ok {
		return hint, true
	}
	for p, hint := range elsewherePrefixes {
		if strings.HasPrefix(variable, p) {
			return hint, true
		}
	}
	return "", false
}

// files reads the file of the settings, and then the file of the secrets if a source
// names one.
func (l *loader) files(name string) {
	required := name != ""
	if name == "" {
		name, required = defaultFile, false
	}
	inMain := l.file(name, required, false)
	secrets, ok := l.given["secrets_file"]
	if !ok {
		return
	}
	inSecrets := l.file(secrets.text, true, true)
	for _, key := range slices.Sorted(maps.Keys(inMain)) {
		if inSecrets[key] {
			l.fault(key, "", fmt.Errorf("it is in %s and in %s: keep it in one of them", name, secrets.text))
		}
	}
}

// file reads a file in TOML, and returns the keys that it has. A file that is not
// required may be absent.
func (l *loader) file(name string, required, onlySecrets bool) map[string]bool {
	b, err := readFile(name, maxFile)
	if !required && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		l.fault(name, "", err)
		return nil
	}
	var document map[string]any
	if err := toml.Unmarshal(b, &document); err != nil {
		var decode *toml.DecodeError
		if errors.As(err, &decode) {
			row, column := decode.Position()
			name = fmt.Sprintf("%s:%d:%d", name, row, column)
		}
		l.fault(name, "", fmt.Errorf("this is not TOML: %w", err))
		return nil
	}
	keys := map[string]bool{}
	// The Rust hiqlite has its settings in a table, which is accepted too.
	if inner, ok := document["hiqlite"].(map[string]any); ok {
		delete(document, "hiqlite")
		for key, v := range inner {
			if _, twice := document[key]; twice {
				l.fault(at(name, b, key), "", fmt.Errorf("%s is given twice: before and in the table [hiqlite]", key))
			}
			document[key] = v
		}
	}
	hasSecret := false
	for _, key := range slices.Sorted(maps.Keys(document)) {
		keys[key] = true
		hasSecret = l.fileValue(name, b, key, document[key], onlySecrets) || hasSecret
	}
	l.checkMode(name, hasSecret)
	return keys
}

// fileValue takes one value of a file, unless a source with precedence gives it. It
// reports whether the value is a secret.
func (l *loader) fileValue(name string, content []byte, key string, v any, onlySecrets bool) (isSecret bool) {
	source := at(name, content, key)
	i := slices.IndexFunc(table, func(s Setting) bool { return s.Key == key })
	if i < 0 {
		l.fault(source, "", unknownKey(key))
		return false
	}
	s := &table[i]
	if onlySecrets && !s.secret {
		l.fault(source, "", fmt.Errorf("%s is not a secret: move it to the file of the other settings", key))
		return false
	}
	t, err := asText(s, v)
	if err != nil {
		l.fault(source, "", fmt.Errorf("%s: %w", key, err))
		l.broken = append(l.broken, key)
		return s.secret
	}
	if _, ok := l.given[key]; !ok && !slices.Contains(l.broken, key) {
		l.given[key] = value{t, source + ": " + key}
	}
	return s.secret
}

// unknownKey returns the error for a key that is not in the table.
func unknownKey(key string) error {
	names := make([]string, 0, len(table))
	for _, s := range table {
		if strings.EqualFold(s.Key, key) || strings.EqualFold(s.Variable, key) {
			return fmt.Errorf("unknown key %q: write %s", key, s.Key)
		}
		names = append(names, s.Key)
	}
	if hint, ok := hintFor(prefix + strings.ToUpper(key)); ok {
		return fmt.Errorf("the key %q of the Rust hiqlite does not exist here: %s", key, hint)
	}
	return fmt.Errorf("unknown key %q: did you mean %s?", key, spelling.Nearest(key, names))
}

// asText returns a value of TOML as the text that an environment variable would have.
func asText(s *Setting, v any) (string, error) {
	want := s.kind.toml
	switch v := v.(type) {
	case string:
		if want == tomlString || want == tomlMeasure || want == tomlList {
			if v == "" {
				return "", errors.New("the value is empty: leave the key out")
			}
			return v, nil
		}
	case int64:
		if want == tomlInteger || want == tomlMeasure { // a measure's reader says that the unit is missing
			return strconv.FormatInt(v, 10), nil
		}
	case bool:
		if want == tomlBoolean {
			return strconv.FormatBool(v), nil
		}
	case []any:
		if want != tomlList {
			break
		}
		var lines []string
		for _, item := range v {
			line, ok := item.(string)
			if !ok {
				return "", fmt.Errorf("the list has %v, which is not a text", item)
			}
			lines = append(lines, line)
		}
		return strings.Join(lines, "\n"), nil
	}
	return "", fmt.Errorf("write %v", want)
}

// at returns a file with the number of the line on which a key is.
func at(name string, content []byte, key string) string {
	found := regexp.MustCompile(`(?m)^[ \t]*["']?` + regexp.QuoteMeta(key) + `["']?[ \t]*=`).FindIndex(content)
	if found == nil {
		return name
	}
	return fmt.Sprintf("%s:%d", name, 1+bytes.Count(content[:found[0]], []byte("\n")))
}

// readFile reads a file of at most so many bytes.
func readFile(name string, most int64) ([]byte, error) {
	info, err := os.Stat(name)
	switch {
	case err != nil:
		return nil, err
	case info.IsDir():
		return nil, errors.New("this is a folder, and a file is needed")
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > most {
		return nil, fmt.Errorf("the file is larger than %d bytes, so it is probably another one", most)
	}
	return b, nil
}

// checkMode warns of a file of secrets that everybody can read.
func (l *loader) checkMode(name string, hasSecret bool) {
	if !hasSecret {
		return
	}
	if info, err := os.Stat(name); err == nil && info.Mode().Perm()&0o007 != 0 {
		l.settings.Warnings = append(l.settings.Warnings,
			fmt.Sprintf("%s has secrets, and every user of this machine may read or write it: chmod 600 %s", name, name))
	}
}
