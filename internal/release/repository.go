package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"go/build"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"
)

// A repository is a checkout with the modules in it.
type repository struct {
	root    string
	path    string     // of the root module
	modules []goModule // the root module first
}

// A goModule is a folder with a go.mod.
type goModule struct {
	dir  string // relative to the root, "." for the root module
	path string
	file *modfile.File

	// public: somebody else can require it. Neither are those of benchmarks,
	// examples and tests, which no other module imports.
	public bool
}

func openRepository(ctx context.Context, root string) (*repository, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	r := &repository{root: root}
	// Those that git ignores are somebody's scratch.
	files, err := r.git(ctx, "ls-files", "--cached", "--others", "--exclude-standard", "--", "go.mod", "*/go.mod")
	if err != nil {
		return nil, err
	}
	for _, name := range strings.Fields(files) {
		m, err := r.readModule(path.Dir(name))
		if err != nil {
			return nil, err
		}
		r.modules = append(r.modules, m)
	}
	slices.SortFunc(r.modules, func(a, b goModule) int { return cmp.Compare(a.dir, b.dir) })
	if len(r.modules) == 0 || r.modules[0].dir != "." {
		return nil, fmt.Errorf("no go.mod in %s", root)
	}
	r.path = r.modules[0].path
	return r, nil
}

func (r *repository) readModule(dir string) (m goModule, err error) {
	name := filepath.Join(r.root, dir, "go.mod")
	text, err := os.ReadFile(name)
	if err != nil {
		return m, err
	}
	file, err := modfile.Parse(name, text, nil)
	if err != nil {
		return m, err
	}
	if file.Module == nil {
		return m, fmt.Errorf("%s names no module", name)
	}
	m = goModule{dir: dir, path: file.Module.Mod.Path, file: file}
	m.public, err = r.isPublic(dir)
	return m, err
}

// isPublic: a test module has nothing that can be imported, or its name says so.
func (r *repository) isPublic(dir string) (bool, error) {
	if dir == "." {
		return true, nil
	}
	for _, part := range strings.Split(dir, "/") {
		if part == "internal" || part == "bench" || part == "examples" || strings.HasSuffix(part, "test") {
			return false, nil
		}
	}
	return r.hasPackage(filepath.Join(r.root, dir))
}

// hasPackage reports whether there is a package to import in the module of dir.
func (r *repository) hasPackage(top string) (found bool, err error) {
	err = filepath.WalkDir(top, func(dir string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil || !entry.IsDir():
			return err
		case entry.Name() == "internal" || entry.Name() == "testdata" || dir != top && isModule(dir):
			return fs.SkipDir
		}
		pkg, err := build.ImportDir(dir, 0)
		if errors.As(err, new(*build.NoGoError)) {
			return nil
		}
		found = found || pkg.Name != "main" && len(pkg.GoFiles) > 0
		return err
	})
	return found, err
}

func isModule(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	return err == nil
}

func (r *repository) public() []goModule {
	return slices.DeleteFunc(slices.Clone(r.modules), func(m goModule) bool { return !m.public })
}

// tag is what Go looks for to find the module's version.
func (m goModule) tag(version string) string {
	return strings.TrimPrefix(path.Join(m.dir, version), "./")
}

// ours are the requirements of one of this repository's modules.
func (r *repository) ours(m goModule) (found []*modfile.Require) {
	for _, require := range m.file.Require {
		if r.owns(require.Mod.Path) {
			found = append(found, require)
		}
	}
	return found
}

func (r *repository) owns(modulePath string) bool {
	return modulePath == r.path || strings.HasPrefix(modulePath, r.path+"/")
}

// released is the version that all modules require of each other.
func (r *repository) released() (version string, err error) {
	var first goModule
	var errs []error
	for _, m := range r.modules {
		for _, require := range r.ours(m) {
			switch {
			case version == "":
				version, first = require.Mod.Version, m
			case version != require.Mod.Version:
				errs = append(errs, fmt.Errorf("%s/go.mod requires %s %s, and %s/go.mod %s: all have to require the same version",
					m.dir, require.Mod.Path, require.Mod.Version, first.dir, version))
			}
		}
	}
	switch {
	case version == "":
		errs = append(errs, errors.New("no module requires another one: which version is this?"))
	case !semver.IsValid(version) || module.IsZeroPseudoVersion(version) || version == "v0.0.0":
		errs = append(errs, fmt.Errorf("%s/go.mod requires %s, which is no version to release", first.dir, version))
	}
	return version, errors.Join(errs...)
}

// borrowed names the replaces of modules that are not ours: users ignore them, and
// so would get another module than the tests do.
func (r *repository) borrowed() error {
	var errs []error
	for _, m := range r.public() {
		for _, replace := range m.file.Replace {
			if !r.owns(replace.Old.Path) {
				errs = append(errs, fmt.Errorf("%s/go.mod replaces %s: its users ignore it", m.dir, replace.Old.Path))
			}
		}
	}
	return errors.Join(errs...)
}

func (r *repository) git(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = r.root
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return "", fmt.Errorf("git %s: %s", strings.Join(args, " "), strings.TrimSpace(string(exit.Stderr)))
	}
	return strings.TrimSpace(string(out)), err
}
