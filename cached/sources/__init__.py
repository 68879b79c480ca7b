"""Where weights come from. Law: sources resolve, list and sign; they carry no bulk bytes and do not know each other."""
