"""Prints "PASSED FAILED SKIPPED" over JUnit files. Tests that need a GPU, or the data that lies beside
some checkouts, may be skipped anywhere."""

import sys
import xml.etree.ElementTree as ET

ALLOWED = ("needs a GPU", "shared data not found")

passed = failed = skipped = 0
for path in sys.argv[1:]:
    try:
        root = ET.parse(path).getroot()
    except (OSError, ET.ParseError) as error:
        print(f"error: {path}: {error}", file=sys.stderr)
        failed += 1
        continue
    for case in root.iter("testcase"):
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failed += 1
        elif skip is not None or case.get("status") in ("notrun", "disabled"):
            text = "" if skip is None else (skip.get("message") or "") + (skip.text or "")
            output = case.findtext("system-out") or ""
            if not any(reason in text + output for reason in ALLOWED):
                skipped += 1
                print(f"skipped: {case.get('name')}: {text.strip()}", file=sys.stderr)
        else:
            passed += 1
print(passed, failed, skipped)
