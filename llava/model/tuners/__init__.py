"""What this tree adds to PEFT. Its modules import PEFT at their top, so they are imported where an adapter is used."""
