"""What a user does to data: public sets become LLaVA JSON, with prompts, splits and small pictures."""
