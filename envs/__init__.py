"""The games as they are: names, protocols, emulators in step, stored episodes, reference scores."""
