"""Between the command line and a task: values checked, errors said, folders named, launchers followed; no science."""
