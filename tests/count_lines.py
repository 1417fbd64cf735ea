"""Print how many lines each room of the library and its tests have; the sum is read at every run."""

from pathlib import Path

ROOT = Path(__file__).parent.parent


def lines(paths):
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def main():
    package = ROOT / "src" / "openwork"
    rooms = {"(top)": list(package.glob("*.py"))}
    rooms |= {room.name: list(room.rglob("*.py")) for room in sorted(package.iterdir()) if room.is_dir()}
    rooms = {name: files for name, files in rooms.items() if files}
    print(f"{'room':<12}{'files':>7}{'lines':>8}")
    for name, files in rooms.items():
        print(f"{name:<12}{len(files):>7}{lines(files):>8}")
    source = [file for files in rooms.values() for file in files]
    tests = list((ROOT / "tests").rglob("*.py"))
    print(f"{'openwork':<12}{len(source):>7}{lines(source):>8}")
    print(f"{'tests':<12}{len(tests):>7}{lines(tests):>8}")


if __name__ == "__main__":
    main()
